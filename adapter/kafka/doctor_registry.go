package kafka

import (
	"context"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/schemas"
)

// registry looks at the registry of schemas, and at the subjects of topics that are
// known by name.
func (e *examiner) registry(ctx context.Context, topics []string) {
	c := e.s.c.Schemas
	if c == nil {
		return
	}
	enc, err := schemas.New(*c)
	if err != nil {
		e.Add(diagnosis.Problem, "registry", "", "%v", err)
		return
	}
	defer enc.Close()
	e.Prefix = "schema registry: "
	there, err := enc.Subjects(ctx)
	if err != nil {
		e.Failed("registry", err)
		return
	}
	e.OK("registry", "the schema registry answers, %d subject(s)", len(there))
	if c.TLS != nil && c.TLS.InsecureSkipVerify {
		e.Add(diagnosis.Warning, "registry", "name the authority instead: registry: {tls: {ca: ca.pem}}", "any certificate of the registry is accepted")
	}
	root := strings.TrimRight(c.URLs[0], "/")
	if c.NoRegister {
		e.OK("registry", "no schema is registered (register: false): row changes that the newest one does not take are refused")
	} else {
		e.judge(ctx, enc.Client(), root)
	}
	var missing []string
	for _, topic := range topics {
		if c.Subject != "" && c.Subject != "topic" {
			break
		}
		subject := topic + "-value"
		known, err := enc.Known(ctx, subject)
		switch {
		case err != nil:
			e.Failed("registry", err)
		case !known:
			missing = append(missing, subject)
		}
	}
	if len(missing) > 0 {
		severity, rows := diagnosis.OK, "that of a table is made with its first row; events that are no row changes are refused until one is registered"
		cure := ""
		if c.NoRegister {
			severity, rows = diagnosis.Warning, "their events would be refused"
			cure = fmt.Sprintf("curl -X POST -H 'Content-Type: application/vnd.schemaregistry.v1+json' -d @schema.json %s/subjects/%s/versions", root, missing[0])
		}
		e.Add(severity, "registry", cure, "without a schema: %s; %s", strings.Join(missing, ", "), rows)
	}
}

// judge says whether the registry takes versions, and what it makes sure of.
func (e *examiner) judge(ctx context.Context, cl *sr.Client, root string) {
	const post = "-H 'Content-Type: application/vnd.schemaregistry.v1+json'"
	for _, r := range cl.Mode(ctx) {
		switch {
		case r.Err != nil:
			e.OK("registry", "the registry does not tell its mode")
		case r.Mode != sr.ModeReadWrite:
			e.Add(diagnosis.Problem, "registry", fmt.Sprintf(`curl -X PUT %s -d '{"mode":"READWRITE"}' %s/mode`, post, root), "the registry is in mode %s: new schemas are refused, and the events that need them", r.Mode)
		default:
			e.OK("registry", "the registry takes new schemas")
		}
	}
	for _, r := range cl.Compatibility(ctx) {
		switch {
		case r.Err != nil:
			e.OK("registry", "the registry does not tell its level of compatibility")
		case r.Level == sr.CompatNone:
			e.Add(diagnosis.Warning, "registry", fmt.Sprintf(`curl -X PUT %s -d '{"compatibility":"BACKWARD"}' %s/config`, post, root), "the registry compares no versions (NONE): a column that changes its type goes on with a schema that readers of older records cannot follow")
		case r.Level == sr.CompatForward, r.Level == sr.CompatForwardTransitive, r.Level == sr.CompatFull, r.Level == sr.CompatFullTransitive:
			e.OK("registry", "the level of compatibility is %s: a column that turns out to be wider than its first values is refused; BACKWARD takes it", r.Level)
		default:
			e.OK("registry", "the level of compatibility is %s", r.Level)
		}
	}
}
