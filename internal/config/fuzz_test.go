package config

import (
	"bytes"
	"errors"
	"os"
	"testing"
)

// FuzzParse: never a panic; every problem has its place and its cure; what is
// taken is taken again, and by the schema too.
func FuzzParse(f *testing.F) {
	for _, file := range corpus(f) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(Template()))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, warnings, err := Parse(data, "fuzz.yaml", dir)
		var bad Problems
		if err != nil && (!errors.As(err, &bad) || len(bad) == 0 || cfg != nil) {
			t.Fatalf("error %v of type %T, configuration %v", err, err, cfg)
		}
		if len(bad) > maxShown+1 || len(warnings) > maxShown {
			t.Fatalf("%d problems, %d warnings", len(bad), len(warnings))
		}
		lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) + 2
		for _, p := range append(bad, warnings...) {
			if p.Line < 1 || p.Line > lines || p.Column < 1 || p.Message == "" || p.Cure == "" {
				t.Fatalf("problem without its place or cure: %+v", p)
			}
		}
		if err == nil {
			if err := cfg.Validate(); err != nil {
				t.Fatalf("taken once, refused the second time: %v", err)
			}
			agree(t, data, dir)
		}
	})
}
