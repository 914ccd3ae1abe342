package config

import (
	"bytes"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"text/template"
)

//go:generate go test -run TestGenerated -update .

//go:embed reference.md.tmpl
var referenceText string

// Reference returns the page docs/configuration.md: every setting with its
// form, default and meaning.
func Reference() []byte {
	page, err := template.New("reference").Funcs(template.FuncMap{
		"table":   func(path, typ string) string { return referenceTable(path, typ, false) },
		"only":    func(path, typ string) string { return referenceTable(path, typ, true) },
		"starter": Template,
	}).Parse(referenceText)
	var b bytes.Buffer
	if err == nil {
		err = page.Execute(&b, nil)
	}
	if err != nil { // the text is part of the program, and a test reads it
		fmt.Fprintf(&b, "\n%v\n", err)
	}
	return b.Bytes()
}

// referenceTable writes the keys of a mapping: those of all types, or, with
// only, those that belong to typ and not to all.
func referenceTable(path, typ string, only bool) string {
	t := root
	if path != "" {
		t = root.at(path)
	}
	var b strings.Builder
	b.WriteString("| key | form | default | meaning |\n| --- | --- | --- | --- |\n")
	for _, f := range t.fields {
		if only != (len(f.types) > 0) || (only && !slices.Contains(f.types, typ)) {
			continue
		}
		f = f.of(typ)
		doc := strings.NewReplacer("|", "\\|", "<", "&lt;", "*", "\\*").Replace(f.doc)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.typeText(), f.defaultText(typ), doc)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
