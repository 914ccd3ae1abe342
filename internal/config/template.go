package config

import _ "embed"

//go:embed template.yaml
var starter string

// Template returns the commented file that `onewrite init` writes. It is a
// valid configuration that runs as it is, with an SQLite database beside it.
func Template() string { return starter }
