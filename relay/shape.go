package relay

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/rediscmd"
	"github.com/onewrite/onewrite/internal/schemas"
	"github.com/onewrite/onewrite/internal/shape"
	"github.com/onewrite/onewrite/internal/topics"
)

// shapeConfig is what a destination makes of events.
func shapeConfig(d config.Destination, maxEvent int) shape.Config {
	return shape.Config{Filter: d.Filter, Transform: d.Transform, Topic: d.Topic, Key: d.Key, MaxData: maxEvent}
}

// shapeCures say what to write, by field.
var shapeCures = map[string]string{
	"filter":    `write a CEL expression that is true or false, such as data.total > 100`,
	"transform": `write a jq program, such as {order: .id, total}; try it with: onewrite check --event FILE`,
	"topic":     `write a template such as shop.{topic}`,
	"key":       `write a template such as "{data.customer}"`,
}

func checkShapes(cfg *Config, bad func(path, message, cure string)) {
	for name, d := range cfg.Destinations {
		_, err := shape.New(shapeConfig(d, 0))
		for _, err := range unjoin(err) {
			var f *shape.FieldError
			if errors.As(err, &f) {
				bad("destinations."+name+"."+f.Field, f.Err.Error(), shapeCures[f.Field])
			}
		}
	}
}

// unjoin are the errors that errors.Join made one of.
func unjoin(err error) []error {
	var list interface{ Unwrap() []error }
	if errors.As(err, &list) {
		return list.Unwrap()
	}
	return nil
}

// shapeOf is what a delivery does to each event; nil: nothing. The configuration was
// validated.
func shapeOf(d config.Destination, maxEvent int) func(*onewrite.Event) (onewrite.Event, bool, error) {
	s, err := shape.New(shapeConfig(d, maxEvent))
	if err != nil {
		return func(e *onewrite.Event) (onewrite.Event, bool, error) { return *e, false, err }
	}
	if s == nil {
		return nil
	}
	return s.Apply
}

// Preview is what a destination would get of an event.
type Preview struct {
	// Destination is the name.
	Destination string
	// Event is what it gets; nil if it gets nothing.
	Event *onewrite.Event
	// Reason says why it gets nothing; it is empty otherwise.
	Reason string
	// Subject is where the registry has the schema that the event is written by, and
	// Schema the one that follows from it where it is a row change; see Kafka's format.
	Subject, Schema string
	// Commands are what a cache in Redis is told.
	Commands []string
	// Parked is true if the event would be refused, and so parked.
	Parked bool
}

// bySchema adds what is to be told of the schema; an event that none can take is parked.
func (p *Preview) bySchema(d config.Destination) {
	s, err := schemas.Look(*schemasOf(d, nil, nil), p.Event.Topic, p.Event)
	if err != nil {
		*p = Preview{Destination: p.Destination, Reason: err.Error(), Parked: true}
		return
	}
	p.Subject, p.Schema = s.Subject, s.Schema
}

// byCommands adds the commands that the event becomes; one that lacks what they name is
// parked.
func (p *Preview) byCommands(d config.Destination) {
	fill := rediscmd.For(p.Event)
	for _, text := range d.Commands {
		c, err := rediscmd.ParseCommand(text)
		if err == nil && !c.For(p.Event.Type) {
			continue
		}
		var args []any
		if err == nil {
			args, _, err = fill.Fill(c)
		}
		if err != nil {
			*p = Preview{Destination: p.Destination, Reason: err.Error(), Parked: true}
			return
		}
		line := c.Name()
		for _, a := range args[1:] {
			line += fmt.Sprintf(" %q", a)
		}
		p.Commands = append(p.Commands, line)
	}
}

// Look says what each destination would get of an event, in the order of their names.
// It connects to nothing: whether a destination takes the event, only it can say.
func Look(cfg *Config, e onewrite.Event) (list []Preview) {
	for _, name := range slices.Sorted(maps.Keys(cfg.Destinations)) {
		d := cfg.Destinations[name]
		p := Preview{Destination: name}
		apply := shapeOf(d, int(cfg.MaxEvent))
		switch {
		case !topics.New(d.Topics).Wants(e.Topic):
			p.Reason = "its topics do not match " + e.Topic
		case apply == nil:
			p.Event = &e
		default:
			out, keep, err := apply(&e)
			switch {
			case err != nil:
				p.Reason, p.Parked = err.Error(), true
			case !keep:
				p.Reason = "it is filtered out"
			default:
				p.Event = &out
			}
		}
		if p.Event != nil && d.Schemas() {
			p.bySchema(d)
		}
		if p.Event != nil && len(d.Commands) > 0 {
			p.byCommands(d)
		}
		list = append(list, p)
	}
	return list
}
