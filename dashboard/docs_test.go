package dashboard_test

import (
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/dashboard"
)

// The page of the API names what there is, and with the right need of the token.
func TestThePageOfTheAPI(t *testing.T) {
	text, err := os.ReadFile("../docs/http-api.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	s := serve(t, &control{ended: make(chan error, 1)}, "token")
	rows := regexp.MustCompile(`(?m)^\| (GET|POST) \| (.*?) \| (yes|no) \|`).FindAllStringSubmatch(page, -1)
	if len(rows) < 10 {
		t.Fatalf("the page has %d rows", len(rows))
	}
	for _, row := range rows {
		path, _, _ := strings.Cut(strings.TrimLeft(row[2], "[`"), "`")
		resp, _ := ask(t, s, row[1], strings.ReplaceAll(path, "NAME", "shop"))
		want := http.StatusOK
		if row[3] == "yes" {
			want = http.StatusUnauthorized
		}
		if resp.StatusCode != want {
			t.Errorf("%s %s: %s", row[1], path, resp.Status)
		}
	}
	for _, v := range []any{dashboard.Status{}, dashboard.Source{}, dashboard.Destination{}, dashboard.Bus{}, dashboard.Reload{}, dashboard.Parked{}} {
		r := reflect.TypeOf(v)
		for i := range r.NumField() {
			name, _, _ := strings.Cut(r.Field(i).Tag.Get("json"), ",")
			if !strings.Contains(page, `"`+name+`"`) && !strings.Contains(page, "`"+name+"`") {
				t.Errorf("%s of %s is not in the page", name, r.Name())
			}
		}
	}
}
