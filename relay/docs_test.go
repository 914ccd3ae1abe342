package relay_test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/relay"
)

// docs/embedding.md says that fields have the names of their keys, and what the
// exceptions are.
func TestFieldsHaveTheNamesOfTheirKeys(t *testing.T) {
	page, err := os.ReadFile("../docs/embedding.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{relay.Config{}, relay.Source{}, relay.Destination{}, relay.Bus{}, relay.Keep{}, relay.Roles{}, relay.Retry{},
		relay.Batch{}, relay.Roll{}, relay.TLS{}, relay.Log{}, relay.Import{}, relay.ImportColumns{}} {
		r := reflect.TypeOf(v)
		for i := range r.NumField() {
			f := r.Field(i)
			key := f.Tag.Get("yaml")
			if key == "-" || strings.ReplaceAll(key, "_", "") == strings.ToLower(f.Name) {
				continue
			}
			if !strings.Contains(string(page), "`"+f.Name) || !strings.Contains(string(page), "`"+key) {
				t.Errorf("%s.%s is %s in a file, and the page does not say so", r.Name(), f.Name, key)
			}
		}
	}
}
