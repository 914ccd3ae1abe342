package diagnosis

import (
	"encoding/json"
	"testing"
)

func TestFindingAsJSON(t *testing.T) {
	for _, c := range []struct {
		f    Finding
		want string
	}{
		{Finding{Severity: OK, Subject: "bus", Check: "folder", Text: "there"}, `{"severity":"ok","subject":"bus","check":"folder","text":"there"}`},
		{Finding{Severity: Warning, Subject: "a", Check: "b", Text: "c", Cure: "d"}, `{"severity":"warning","subject":"a","check":"b","text":"c","cure":"d"}`},
		{Finding{Severity: Problem}, `{"severity":"problem","subject":"","check":"","text":""}`},
	} {
		got, err := json.Marshal(c.f)
		if err != nil || string(got) != c.want {
			t.Errorf("%s, %v; want %s", got, err, c.want)
		}
		var back Finding
		if err := json.Unmarshal(got, &back); err != nil || back != c.f {
			t.Errorf("%s comes back as %+v, %v", got, back, err)
		}
	}
	if _, err := json.Marshal(Finding{Severity: 3}); err == nil {
		t.Error("a severity that is none was written")
	}
	var f Finding
	if err := json.Unmarshal([]byte(`{"severity":"bad"}`), &f); err == nil {
		t.Error("a severity that is none was read")
	}
	if got := Severity(-1).String(); got != "severity(-1)" {
		t.Errorf("%q", got)
	}
}
