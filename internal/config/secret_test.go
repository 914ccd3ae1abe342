package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// holder keeps a secret where fmt cannot call its methods.
type holder struct{ hidden, other Secret }

func TestSecretIsNeverShown(t *testing.T) {
	s := NewSecret(canary)
	if s.Reveal() != canary || s.Empty() || !(Secret{}).Empty() || NewSecret("") != (Secret{}) {
		t.Fatal("Reveal, Empty")
	}
	dir := stage(t)
	data, err := os.ReadFile("testdata/valid_full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, _, err := Parse(data, "x", dir)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Token.Reveal() != canary || cfg.Destinations["warehouse"].Secret[0].Reveal() != canary {
		t.Fatal("the secrets did not arrive; this test would prove nothing")
	}
	var b bytes.Buffer
	for _, v := range []any{s, &s, cfg, *cfg, cfg.Destinations["warehouse"], holder{s, s}, &holder{s, s}, []Secret{s}, map[string]Secret{"k": s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%T", "%10.5s"} {
			fmt.Fprintf(&b, verb+"\n", v)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
		if text, err = yaml.Marshal(v); err != nil {
			t.Fatal(err)
		}
		b.Write(text)
		for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			slog.New(h).Info("x", "v", v, slog.Group("g", "v", v))
		}
		fmt.Fprintln(&b, fmt.Errorf("wrapped: %v", v))
	}
	hexed := fmt.Sprintf("%x", canary)
	for _, bad := range []string{canary, hexed, strings.ToUpper(hexed)} {
		if strings.Contains(b.String(), bad) {
			t.Errorf("a secret is shown as %s", bad)
		}
	}
	if !strings.Contains(b.String(), mask) {
		t.Error("nothing was masked; this test proves nothing")
	}
}

func TestRedact(t *testing.T) {
	for raw, want := range map[string]string{
		"https://a.example/x?key=" + canary + "#" + canary:    "https://a.example/x?***",
		"https://u:" + canary + "@a.example:8/x":              "https://***@a.example:8/x",
		"nats://" + canary + "@a:4222, nats://u:p@b:4222":     "nats://***@a:4222,nats://***@b:4222",
		"postgres://u:" + canary + "@h/db?password=" + canary: "postgres://***@h/db?***",
		"host=h password=" + canary:                           "***",
		"postgres://u:%zz" + canary + "@h/db":                 "***",
		canary:                                                "***",
		"user:" + canary:                                      "***",
	} {
		if got := Redact(raw); got != want || strings.Contains(got, canary) {
			t.Errorf("%s\ngot  %s\nwant %s", raw, got, want)
		}
	}
}
