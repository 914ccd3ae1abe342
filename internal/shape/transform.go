package shape

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/itchyny/gojq"

	"github.com/onewrite/onewrite"
)

const defaultMaxData = 1 << 20

// errNow: a repeat of an event has the same bytes.
var errNow = errors.New("now is another one when the event is sent again, and a repeat has to be the same; use $event.time")

// transform is a jq program.
type transform struct {
	code *gojq.Code
	max  int
}

func newTransform(text string, maxData int) (*transform, error) {
	query, err := gojq.Parse(text)
	if err != nil {
		return nil, err
	}
	if calls(reflect.ValueOf(query), "now") {
		return nil, errNow
	}
	code, err := gojq.Compile(query, gojq.WithVariables([]string{"$event"}))
	if err != nil {
		return nil, err
	}
	if maxData <= 0 {
		maxData = defaultMaxData
	}
	return &transform{code: code, max: maxData}, nil
}

// calls reports whether a part of a program is a call of the function name.
func calls(v reflect.Value, name string) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if f, ok := v.Interface().(*gojq.Func); ok && f != nil && f.Name == name {
			return true
		}
		return !v.IsNil() && calls(v.Elem(), name)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && calls(v.Field(i), name) {
				return true
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if calls(v.Index(i), name) {
				return true
			}
		}
	}
	return false
}

// run returns the new payload; keep is false if the program gives nothing.
func (t *transform) run(v *view) (data []byte, keep bool, err error) {
	value, err := v.payload()
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()
	results := t.code.RunWithContext(ctx, plain(value, numberOfJQ), attributes(v.e))
	first, ok := results.Next()
	if !ok {
		return nil, false, nil
	}
	if err := failed(ctx, first); err != nil {
		return nil, false, err
	}
	second, more := results.Next()
	if err := failed(ctx, second); more && err != nil {
		return nil, false, err
	}
	if more {
		return nil, false, errors.New("the program gives more than one result; an event is one: collect them with [ ]")
	}
	if data, err = gojq.Marshal(first); err != nil {
		return nil, false, err
	}
	if len(data) > t.max {
		return nil, false, fmt.Errorf("the result has %d bytes, more than the %d of max_event", len(data), t.max)
	}
	return data, true, nil
}

// failed returns the error that a result is, if it is one.
func failed(ctx context.Context, result any) error {
	err, bad := result.(error)
	switch {
	case !bad:
		return nil
	case ctx.Err() != nil:
		return errTooLong
	}
	var halt *gojq.HaltError
	if errors.As(err, &halt) {
		return errors.New("the program halts; let it fail with error(\"why\"), or give empty to leave the event out")
	}
	return err
}

// attributes is $event.
func attributes(e *onewrite.Event) map[string]any {
	headers := make(map[string]any, len(e.Header))
	for k, v := range e.Header {
		headers[k] = v
	}
	return map[string]any{
		"id": e.ID, "source": e.Source, "topic": e.Topic, "type": e.Type, "key": e.Key,
		"time": e.Time.UTC().Format(time.RFC3339Nano), "headers": headers,
	}
}
