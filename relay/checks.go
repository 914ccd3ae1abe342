package relay

import (
	"net/url"
	"strings"

	"github.com/onewrite/onewrite/adapter/webhook"
	"github.com/onewrite/onewrite/internal/config"
)

// checks are what a configuration has to pass beside its own rules.
var checks = []config.Check{checkShapes, checkReceivers}

// Validate gives the settings that hold nothing their defaults and checks all. The
// error is [Problems], without lines. New and the other functions do it themselves.
func Validate(cfg *Config) error { return cfg.Validate(checks...) }

// checkReceivers refuses addresses that a webhook would refuse when it opens.
func checkReceivers(cfg *Config, bad func(path, message, cure string)) {
	for name, d := range cfg.Destinations {
		u, err := url.Parse(d.URL.Reveal())
		if d.Type != "webhook" || err != nil {
			continue
		}
		if err := webhook.CheckHost(u.Hostname(), d.AllowPrivate); err != nil {
			message, cure, _ := strings.Cut(err.Error(), "; ")
			bad("destinations."+name+".url", message, cure)
		}
	}
}
