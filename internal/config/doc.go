// Package config is the one YAML file: its model, its strict parser with every
// problem at its line and with its cure, the references to secrets, the
// defaults, the template of `onewrite init`, the reference page and the JSON
// Schema for editors. All of them are made from one table, the tags of the
// model's structs.
//
// A reference ${env:NAME} or ${file:path} may stand anywhere inside a value;
// $${ stands for the two characters ${. Commands are never run.
package config
