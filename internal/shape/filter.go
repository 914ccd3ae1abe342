package shape

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
)

// Bounds of one evaluation.
const (
	maxCost   = 1_000_000 // CEL's own measure: about one for each step, comparison or character
	timeLimit = 250 * time.Millisecond
)

// filter is a CEL expression.
type filter struct{ program cel.Program }

func newFilter(text string) (*filter, error) {
	env, err := cel.NewEnv(
		cel.Variable("id", cel.StringType), cel.Variable("source", cel.StringType), cel.Variable("topic", cel.StringType),
		cel.Variable("type", cel.StringType), cel.Variable("key", cel.StringType), cel.Variable("time", cel.TimestampType),
		cel.Variable("headers", cel.MapType(cel.StringType, cel.StringType)), cel.Variable("data", cel.DynType),
		ext.Strings(),
	)
	if err != nil {
		return nil, err
	}
	tree, issues := env.Compile(text)
	if issues.Err() != nil {
		first := issues.Errors()[0]
		return nil, fmt.Errorf("at line %d, character %d: %s", first.Location.Line(), first.Location.Column()+1, strings.TrimSuffix(first.Message, " (in container '')"))
	}
	if out := tree.OutputType(); !out.IsExactType(cel.BoolType) && !out.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("the expression is not true or false, but of type %s; compare it with something", out)
	}
	program, err := env.Program(tree, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(100), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, err
	}
	return &filter{program}, nil
}

func (f *filter) wants(v *view) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()
	out, _, err := f.program.ContextEval(ctx, (*celView)(v))
	if ctx.Err() != nil {
		return false, fmt.Errorf("the expression took longer than %v", timeLimit)
	}
	if err != nil {
		return false, cured(err)
	}
	yes, ok := out.Value().(bool)
	if !ok {
		return false, fmt.Errorf("the expression is not true or false for this event, but of type %s", out.Type().TypeName())
	}
	return yes, nil
}

// cured adds to CEL's commonest words what to write instead.
func cured(err error) error {
	text := err.Error()
	if key, ok := strings.CutPrefix(text, "no such key: "); ok {
		return fmt.Errorf("%w; if it may be missing, ask for it first: has(… .%s) && …", err, key)
	}
	if strings.HasPrefix(text, "no such overload") {
		return fmt.Errorf("%w; a value is of another type than the expression compares it with: look at the event, and ask for the type first: type(…) == string && …", err)
	}
	return err
}

// celView gives CEL the variables.
type celView view

var _ interpreter.Activation = (*celView)(nil)

// ResolveName returns a variable's value.
func (v *celView) ResolveName(name string) (any, bool) {
	e := v.e
	switch name {
	case "time":
		return e.Time, true
	case "headers":
		if e.Header == nil {
			return map[string]string{}, true
		}
		return e.Header, true
	case "data":
		value, err := (*view)(v).payload()
		if err == nil {
			return plain(value, numberOfCEL), true
		}
		if e.ContentType == "application/octet-stream" {
			return e.Data, true
		}
		return string(e.Data), true
	}
	if f := fields[name]; f != nil {
		return f(e), true
	}
	return nil, false
}

// Parent is nil: there is nothing around an event.
func (v *celView) Parent() interpreter.Activation { return nil }

// errTooLong is what is said of a program that does not end.
var errTooLong = errors.New("the program took longer than " + timeLimit.String())
