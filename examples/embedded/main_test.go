package main

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestEmbedded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out strings.Builder
	if err := run(ctx, t.TempDir(), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"order 1 of alice is shipped", "order 2 of bob is shipped", "order 3 of alice is shipped"} {
		if strings.Count(out.String(), want) != 1 {
			t.Errorf("%q is not there once:\n%s", want, out.String())
		}
	}
}
