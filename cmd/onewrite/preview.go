package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/relay"
)

// preview is what check --event prints of one destination with --json.
type preview struct {
	ID          string          `json:"id"`
	Destination string          `json:"destination"`
	Outcome     string          `json:"outcome"` // delivered, filtered or parked
	Event       json.RawMessage `json:"event,omitempty"`
	Reason      string          `json:"reason,omitempty"`
	Subject     string          `json:"subject,omitempty"`  // of the schema registry
	Schema      any             `json:"schema,omitempty"`   // that follows from a row change: JSON, or a text
	Commands    []string        `json:"commands,omitempty"` // that a cache in Redis is told
}

// checkEvents shows what each destination would get of the events in a file.
func (a *app) checkEvents(cmd *cobra.Command, file string) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	events, err := readEvents(cmd, file)
	if err != nil {
		return err
	}
	list, refused := []preview{}, false
	for i := range events {
		for _, l := range relay.Look(cfg, events[i]) {
			p := preview{ID: events[i].ID, Destination: l.Destination, Outcome: "filtered", Reason: l.Reason}
			switch {
			case l.Event != nil:
				p.Outcome, p.Event, p.Subject, p.Schema = "delivered", cloudevents.AppendJSON(nil, l.Event), l.Subject, rawSchema(l.Schema)
				p.Commands = l.Commands
			case l.Parked:
				p.Outcome, refused = "parked", true
			}
			list = append(list, p)
		}
	}
	if a.json {
		err = printJSON(cmd.OutOrStdout(), list)
	} else {
		printPreviews(cmd.OutOrStdout(), list)
	}
	if err == nil && refused {
		return exitCode{3, nil}
	}
	return err
}

func printPreviews(w io.Writer, list []preview) {
	for _, p := range list {
		switch p.Outcome {
		case "delivered":
			var text bytes.Buffer
			_ = json.Indent(&text, bytes.TrimSpace(p.Event), "  ", "  ")
			fmt.Fprintf(w, "%s -> %s:\n  %s\n", p.ID, p.Destination, text.String())
			if p.Subject != "" {
				printSchema(w, p)
			}
			for _, c := range p.Commands {
				fmt.Fprintf(w, "  as %s\n", c)
			}
		case "parked":
			fmt.Fprintf(w, "%s -> %s: is parked: %s\n", p.ID, p.Destination, p.Reason)
		default:
			fmt.Fprintf(w, "%s -> %s: nothing: %s\n", p.ID, p.Destination, p.Reason)
		}
	}
}

// printSchema says by which schema the registry has the event written.
func printSchema(w io.Writer, p preview) {
	if p.Schema == nil {
		fmt.Fprintf(w, "  by the newest schema of subject %s, which is not asked for here\n", p.Subject)
		return
	}
	fmt.Fprintf(w, "  by a schema of subject %s; this one follows from the event alone:\n  %s\n", p.Subject, strings.ReplaceAll(strings.TrimSpace(fmt.Sprintf("%s", p.Schema)), "\n", "\n  "))
}

// sample reads one event. What a sample need not say is made up: the id, the source,
// the type or the topic, whichever of the two is missing, and that its data is JSON. The
// key is partitionkey in CloudEvents; key is taken for it where it was not written by a
// program.
func sample(raw json.RawMessage, n int) (onewrite.Event, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		return onewrite.Event{}, fmt.Errorf("not a JSON object: %w", err)
	}
	made := map[string]json.RawMessage{"id": fmt.Appendf(nil, `"sample-%d"`, n), "source": []byte(`"/sample"`)}
	if made["type"] = object["topic"]; made["type"] == nil {
		made["type"] = object["type"]
	}
	made["topic"] = made["type"]
	if object["type"] != nil {
		made["topic"] = object["type"]
	}
	if object["data"] != nil {
		made["datacontenttype"] = []byte(`"application/json"`)
	}
	if object["specversion"] == nil && object["partitionkey"] == nil { // written by hand
		made["partitionkey"] = object["key"]
		delete(object, "key")
	}
	for name, value := range made {
		if object[name] == nil && value != nil {
			object[name] = value
		}
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // the payload stays as it is
	if err := enc.Encode(object); err != nil {
		return onewrite.Event{}, err
	}
	return cloudevents.ParseJSON(text.Bytes())
}

// maxSample bounds a file of sample events.
const maxSample = 64 << 20

// readEvents reads CloudEvents in JSON: objects one after the other, or in a list.
func readEvents(cmd *cobra.Command, file string) (events []onewrite.Event, err error) {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usage(fmt.Errorf("%w; name a file with one CloudEvents JSON object a line, as a file destination writes them", err))
		}
		defer f.Close()
		in = f
	}
	d := json.NewDecoder(io.LimitReader(in, maxSample))
	for n := 1; ; n++ {
		var raw json.RawMessage
		if err := d.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, usage(fmt.Errorf("%s: event %d is not JSON: %w", file, n, err))
		}
		all := []json.RawMessage{raw}
		if bytes.HasPrefix(raw, []byte("[")) {
			if err := json.Unmarshal(raw, &all); err != nil {
				return nil, usage(fmt.Errorf("%s: %w", file, err))
			}
		}
		for _, one := range all {
			e, err := sample(one, len(events)+1)
			if err != nil {
				return nil, usage(fmt.Errorf("%s: event %d: %w", file, n, err))
			}
			events = append(events, e)
		}
	}
	if len(events) == 0 {
		return nil, usage(fmt.Errorf("%s holds no event; write one CloudEvents JSON object a line, as a file destination writes them", file))
	}
	return events, nil
}

// rawSchema is a schema as it stands in JSON: as it is, or a text where it is no JSON.
func rawSchema(text string) any {
	switch {
	case text == "":
		return nil
	case !json.Valid([]byte(text)):
		return text
	}
	return json.RawMessage(text)
}
