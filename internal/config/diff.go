package config

import (
	"reflect"
	"slices"
)

// Changes is what is different between two configurations.
type Changes struct {
	// Added, Removed and Changed are names of destinations; a reload brings them
	// into effect.
	Added, Removed, Changed []string
	// RestartNeeded are the paths of other settings that changed.
	RestartNeeded []string
}

// Diff compares two configurations; all lists are sorted. Secrets that changed
// count, and are not shown.
func Diff(old, next *Config) Changes {
	var out Changes
	for name, d := range next.Destinations {
		if was, ok := old.Destinations[name]; !ok {
			out.Added = append(out.Added, name)
		} else if !reflect.DeepEqual(was, d) {
			out.Changed = append(out.Changed, name)
		}
	}
	for name := range old.Destinations {
		if _, ok := next.Destinations[name]; !ok {
			out.Removed = append(out.Removed, name)
		}
	}
	differ(reflect.ValueOf(*old), reflect.ValueOf(*next), root, "", &out.RestartNeeded)
	for _, list := range [][]string{out.Added, out.Removed, out.Changed, out.RestartNeeded} {
		slices.Sort(list)
	}
	return out
}

// differ appends the paths of settings that differ, destinations apart.
func differ(a, b reflect.Value, t *table, path string, out *[]string) {
	for _, f := range t.fields {
		at, av, bv := join(path, f.name), a.Field(f.index), b.Field(f.index)
		switch {
		case at == "destinations" || reflect.DeepEqual(av.Interface(), bv.Interface()):
		case f.kind == kindStructMap:
			differMaps(av, bv, f, at, out)
		case f.sub != nil && av.Kind() == reflect.Struct:
			differ(av, bv, f.sub, at, out)
		default:
			*out = append(*out, at)
		}
	}
}

func differMaps(a, b reflect.Value, f *field, path string, out *[]string) {
	for _, key := range a.MapKeys() {
		at := join(path, key.String())
		if bv := b.MapIndex(key); bv.IsValid() {
			differ(a.MapIndex(key), bv, f.sub, at, out)
		} else {
			*out = append(*out, at)
		}
	}
	for _, key := range b.MapKeys() {
		if !a.MapIndex(key).IsValid() {
			*out = append(*out, join(path, key.String()))
		}
	}
}
