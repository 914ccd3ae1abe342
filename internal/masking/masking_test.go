package masking_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/masking"
)

func TestRules(t *testing.T) {
	rules, err := masking.Parse([]string{"public.customers.password drop", "public.customers.email hash", "*.note truncate 3", "billing.cards only id, brand", "billing.cards.brand  truncate  1"})
	if err != nil {
		t.Fatal(err)
	}
	for column, want := range map[string]masking.Mask{
		"public.customers.password": {Kind: masking.Drop},
		"public.customers.email":    {Kind: masking.Hash},
		"public.customers.name":     {},
		"public.other.password":     {},
		"any.table.note":            {Kind: masking.Truncate, Chars: 3},
		"billing.cards.id":          {},
		"billing.cards.number":      {Kind: masking.Drop},
		"billing.cards.brand":       {Kind: masking.Truncate, Chars: 1},
	} {
		p := strings.Split(column, ".")
		if got := rules.Of(p[0], p[1], p[2]); got != want {
			t.Errorf("%s: %+v, want %+v", column, got, want)
		}
	}
	if got, want := rules.Text("billing", "cards"), "*.note truncate 3\nbilling.cards only id, brand\nbilling.cards.brand truncate 1"; got != want {
		t.Errorf("of cards: %q", got)
	}
	if got := rules.Text("billing", "other"); got != "*.note truncate 3" {
		t.Errorf("of another table: %q", got)
	}
	if got := fmt.Sprint(rules.Targets()[2:4]); got != "[{*.note truncate 3   [note]} {billing.cards only id, brand billing cards [id brand]}]" {
		t.Errorf("targets: %s", got)
	}
	if !rules.Hashes() || masking.Rules(nil).Hashes() {
		t.Error("which rules need a key")
	}
	for _, bad := range []string{"", "password drop", "a.b drop", "a.b.c", "a.b.c hide", "a.b.c truncate", "a.b.c truncate -1", "a.b.c truncate x", "a.b.c.d drop", "*.* only", "a only x", "a.b only x,,y", "a..c drop", "*. drop"} {
		if _, err := masking.Parse([]string{bad}); err == nil || !strings.Contains(err.Error(), "write ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestForms(t *testing.T) {
	h := masking.NewHasher("key")
	// RFC 2104 with SHA-256: printf 'value' | openssl dgst -sha256 -hmac key
	if got := h.Sum([]byte("value")); got != "90fbfcf15e74a36b89dbdb2a721d9aecffdfdddc5c83e27f7592594f71932481" || h.Sum([]byte("value")) != got {
		t.Error(got)
	}
	for n, want := range map[int]string{0: "", 1: "ä", 2: "äb", 9: "äb€"} {
		if got := string(masking.First([]byte("äb€"), n)); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
}
