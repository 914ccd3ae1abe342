package storm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// huge is as large as an event may be, about; it is drawn seldom.
const huge = "repeat('L😀m', 160000)"

// extremes are values of W5, for each column of rows.wide, as SQL.
var extremes = map[string][]string{
	"i2": {"-32768", "32767", "0"}, "i8": {"-9223372036854775808", "9223372036854775807", "9007199254740993"}, "o": {"0", "4294967295"},
	"f4": {"'NaN'", "'Infinity'", "'-Infinity'", "1.1754944e-38", "3.4028235e38", "-0.0", "0.1"}, "f8": {"'NaN'", "'Infinity'", "'-Infinity'", "5e-324", "1.7976931348623157e308", "'-0'", "0.1", "1e22", "123456789012345680"},
	"num":  {"'NaN'", "'Infinity'", "'-Infinity'", "0.000", "-0.00000000000000000000000000000000001", "('1' || repeat('0', 16000) || '.' || repeat('7', 16000))::numeric"},
	"long": {"repeat('9', 1000)::numeric", "-1", "'NaN'"},
	"t":    {"''", "' '", "'null'", "'NULL'", `E'\\ \' " \t \r \n \x01 \x1f \x7f \b \f'`, `'{"a": "b"}'`, "'😀 𐍈 é é ﬀ'", `U&'\2028\2029\FEFF\FFFD'`, "repeat('é', 3000)", `'<script>&amp;'`, `E'\\u0000'`},
	"c":    {"''", "'ab'", "'a  '"}, "vc": {"''", "'x'", `E'\\'`},
	"ba": {"''", `'\x00'`, `'\xff00fe'`, "decode(repeat('00ff', 5000), 'hex')"}, "b": {"true", "false"},
	"d":  {"'infinity'", "'-infinity'", "'4713-01-01 BC'", "'0001-01-01'", "'5874897-12-31'", "'2024-02-29'"},
	"ts": {"'infinity'", "'-infinity'", "'0044-03-15 12:00:00 BC'", "'294276-12-31 23:59:59.999999'", "'0001-01-01 00:00:00'", "'2024-02-29 01:02:03.000001'", "'12024-02-29 01:02:03.1'"},
	"tz": {"'infinity'", "'-infinity'", "'0044-03-15 12:00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'", "'2024-02-29 01:02:03.5+13:45'", "'1883-11-18 12:00:00 America/New_York'"},
	"tt": {"'24:00:00'", "'00:00:00.000001'"}, "iv": {"'-178000000 years'", "'1 year -2 mons 3 days -04:05:06.000001'", "'0'"},
	"js": {`'{"b":1,  "a":[1,2.50,1e400], "a":null}'`, `'123456789012345678901234567890.50'`, `'"\u00e9\ud83d\ude00"'`, `'null'`},
	"jb": {`'{"n":123456789012345678901234567890, "x":0.100000000000000000000000000001, "y":1e300}'`, `'"\u00e9\ud83d\ude00 \"\\"'`, `'null'`, `'[]'`, `jsonb_build_object('deep', repeat('[', 60)||repeat(']', 60))`},
	"u":  {"'00000000-0000-0000-0000-000000000000'", "'FFFFFFFF-ffff-ffff-ffff-ffffffffffff'"},
	"ai": {"'{}'", "'{1,NULL,-3}'", "'[0:2]={1,NULL,3}'", "'{{1,2},{3,NULL}}'", "'[-1:0][5:6]={{1,2},{3,4}}'"},
	"at": {"'{}'", `'{"a\"b","NULL",NULL,"","\\","{}",",",😀}'`, `'{{a,b},{" ",d}}'`},
	"an": {"'{NaN,1.10,NULL,123456789012345678901234567890.5}'"}, "ab": {"'{t,f,NULL}'"}, "af": {"'{NaN,Infinity,-Infinity,1e-300,NULL,0.1}'"},
	"en": {"'sad'", `'it''s "fine"'`}, "dom": {"999", "-1"},
	"big":           {"repeat('large ', 500)", "repeat('larger ', 500)", "repeat('l😀', 600)", `repeat(E'"\\\\\n', 1000)`, huge},
	`"odd ""name'"`: {"'odd'", "''"},
}

// extreme writes such values, or NULL, into some columns of a row, and leaves others
// alone.
func (w *rower) extreme(ctx context.Context) error {
	table := []string{"wide", "wide", "whole"}[w.rng.IntN(3)]
	names := slices.Sorted(maps.Keys(extremes))
	w.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	names = names[:1+w.rng.IntN(len(names))]
	var values, set []string
	for _, name := range names {
		list := extremes[name]
		value := list[w.rng.IntN(len(list))]
		if w.rng.IntN(6) == 0 || value == huge && w.rng.IntN(4) > 0 {
			value = "NULL"
		}
		values, set = append(values, value), append(set, name+" = excluded."+name)
	}
	id := w.rng.IntN(40)
	if w.rng.IntN(12) == 0 {
		return w.run(ctx, "extreme", fmt.Sprintf("DELETE FROM rows.%s WHERE id = %d", table, id))
	}
	return w.run(ctx, "extreme", fmt.Sprintf("INSERT INTO rows.%s AS x (id, v, %s) VALUES (%d, %d, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v, %s",
		table, strings.Join(names, ", "), id, w.fresh(), strings.Join(values, ", "), strings.Join(set, ", ")))
}
