package postgres

import (
	"encoding/base64"
	"strings"
)

// typeCase is a column, a value for it in SQL, and the JSON that the contract wants.
type typeCase struct {
	typ, value, want string
}

// typesDDL makes the types that are not built in.
const typesDDL = `
	CREATE TYPE mood AS ENUM ('sad', 'so so', 'ha"ppy');
	CREATE TYPE pair AS (a int, b text, c timestamptz);
	CREATE TYPE floatrange AS RANGE (subtype = float8);
	CREATE DOMAIN d_int AS int CHECK (value > 0);
	CREATE DOMAIN d_deep AS d_int;
	CREATE DOMAIN d_text AS text;
	CREATE DOMAIN d_ints AS int[];
	CREATE DOMAIN d_deep_ints AS d_ints;
	CREATE DOMAIN d_instant AS timestamptz;
	CREATE DOMAIN d_bytes AS bytea;
	CREATE DOMAIN d_bool AS bool;
	CREATE DOMAIN d_pair AS pair;
	CREATE DOMAIN d_mood AS mood;
	CREATE DOMAIN d_box AS box;`

// typeCases are written from the contract, not from what onewrite does. SUPERUSER
// stands for the name of the server's first role.
var typeCases = []typeCase{
	{`bool`, `true`, `true`}, {`bool`, `false`, `false`}, {`d_bool`, `true`, `true`},
	{`int2`, `-32768`, `-32768`}, {`int4`, `2147483647`, `2147483647`}, {`int8`, `-9223372036854775808`, `-9223372036854775808`}, {`int8`, `9223372036854775807`, `9223372036854775807`},
	{`oid`, `4294967295`, `4294967295`},
	{`float4`, `'0.1'`, `0.1`}, {`float4`, `'1e-45'`, `1e-45`}, {`float4`, `'3.4028235e38'`, `3.4028235e+38`}, {`float4`, `'16777216'`, `1.6777216e+07`}, {`float4`, `'NaN'`, `"NaN"`},
	{`float8`, `0.1`, `0.1`}, {`float8`, `'5e-324'`, `5e-324`}, {`float8`, `'-0'`, `-0`}, {`float8`, `1.7976931348623157e308`, `1.7976931348623157e+308`},
	{`float8`, `0.30000000000000004`, `0.30000000000000004`}, {`float8`, `'NaN'`, `"NaN"`}, {`float8`, `'Infinity'`, `"Infinity"`}, {`float8`, `'-Infinity'`, `"-Infinity"`}, {`float8`, `123456789012345`, `123456789012345`},
	{`numeric`, `'NaN'`, `"NaN"`}, {`numeric`, `'Infinity'`, `"Infinity"`}, {`numeric`, `'-Infinity'`, `"-Infinity"`}, {`numeric(10,2)`, `12.5`, `"12.50"`}, {`numeric`, `-0.0`, `"0.0"`},
	{`numeric`, `'1e131071'`, `"1` + strings.Repeat("0", 131071) + `"`}, {`numeric`, `'1e-16383'`, `"0.` + strings.Repeat("0", 16382) + `1"`}, {`numeric(3,-2)`, `12345`, `"12300"`},
	{`text`, `''`, `""`}, {`text`, `E'a"b\\c/d'`, `"a\"b\\c/d"`}, {`text`, `'é€😀' || U&'\2028' || '<&>'`, "\"é€😀\u2028<&>\""}, {`text`, `repeat('xyz"', 262144)`, `"` + strings.Repeat(`xyz\"`, 262144) + `"`},
	{`text`, `(SELECT string_agg(chr(i), '' ORDER BY i) FROM generate_series(1, 31) i) || chr(127)`,
		`"\u0001\u0002\u0003\u0004\u0005\u0006\u0007\u0008\t\n\u000b\u000c\r\u000e\u000f\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f` + "\x7f\""},
	{`varchar(10)`, `'ab '`, `"ab "`}, {`char(5)`, `'ab'`, `"ab   "`}, {`bpchar`, `'ab  '`, `"ab  "`}, {`"char"`, `'x'`, `"x"`}, {`name`, `'a name'`, `"a name"`}, {`d_text`, `'NULL'`, `"NULL"`},
	{`uuid`, `'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'`, `"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"`},
	{`json`, `'{"b":1,  "a" : 2, "a":3.0}'`, `"{\"b\":1,  \"a\" : 2, \"a\":3.0}"`}, {`json`, `'null'`, `"null"`}, {`jsonb`, `'{"b":1,  "a" : 2, "a":3.0}'`, `"{\"a\": 3.0, \"b\": 1}"`}, {`jsonb`, `'12345678901234567890.10'`, `"12345678901234567890.10"`},
	{`bytea`, `''`, `""`}, {`bytea`, `'\x00ff10'`, `"AP8Q"`}, {`d_bytes`, `'\x5c'`, `"XA=="`}, {`bytea`, `decode(repeat('00ff', 524288), 'hex')`, `"` + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00\xff", 524288))) + `"`},
	{`timestamptz`, `'2024-05-06 07:08:09.000001+05:30'`, `"2024-05-06T01:38:09.000001Z"`}, {`timestamptz`, `'2024-05-06 07:08:09+00'`, `"2024-05-06T07:08:09Z"`}, {`timestamptz`, `'1883-11-18 12:03:58-04:56:02'`, `"1883-11-18T17:00:00Z"`},
	{`timestamptz`, `'infinity'`, `"infinity"`}, {`timestamptz`, `'-infinity'`, `"-infinity"`}, {`timestamptz`, `'0044-03-15 12:00:00+00 BC'`, `"0044-03-15 12:00:00+00 BC"`}, {`timestamptz`, `'12024-05-06 07:08:09.5+00'`, `"12024-05-06T07:08:09.5Z"`},
	{`timestamptz(0)`, `'2024-05-06 23:59:59.9+00'`, `"2024-05-07T00:00:00Z"`}, {`d_instant`, `'2024-05-06 07:08:09-12'`, `"2024-05-06T19:08:09Z"`},
	{`timestamp`, `'2024-05-06 07:08:09.5'`, `"2024-05-06T07:08:09.5"`}, {`timestamp`, `'0044-03-15 12:00:00 BC'`, `"0044-03-15 12:00:00 BC"`}, {`timestamp`, `'infinity'`, `"infinity"`}, {`timestamp`, `'294276-12-31 23:59:59.999999'`, `"294276-12-31T23:59:59.999999"`},
	{`date`, `'2024-05-06'`, `"2024-05-06"`}, {`date`, `'infinity'`, `"infinity"`}, {`date`, `'0044-03-15 BC'`, `"0044-03-15 BC"`}, {`date`, `'12024-05-06'`, `"12024-05-06"`},
	{`time`, `'24:00:00'`, `"24:00:00"`}, {`time`, `'07:08:09.000001'`, `"07:08:09.000001"`}, {`timetz`, `'07:08:09+05:30:15'`, `"07:08:09+05:30:15"`}, {`timetz`, `'24:00:00-15:59:59'`, `"24:00:00-15:59:59"`},
	{`interval`, `'1 year 2 mons -3 days 04:05:06.789'`, `"1 year 2 mons -3 days +04:05:06.789"`}, {`interval`, `'0'`, `"00:00:00"`},
	{`money`, `'-1234.5'`, `"-$1,234.50"`},
	{`bit(5)`, `B'10101'`, `"10101"`}, {`varbit`, `B''`, `""`}, {`inet`, `'10.0.0.1/8'`, `"10.0.0.1/8"`}, {`inet`, `'::1'`, `"::1"`}, {`cidr`, `'10.0.0.0/8'`, `"10.0.0.0/8"`},
	{`macaddr`, `'08:00:2b:01:02:03'`, `"08:00:2b:01:02:03"`}, {`macaddr8`, `'08:00:2b:01:02:03:04:05'`, `"08:00:2b:01:02:03:04:05"`},
	{`point`, `'(1.5,-2)'`, `"(1.5,-2)"`}, {`line`, `'{1,-1,0}'`, `"{1,-1,0}"`}, {`lseg`, `'[(0,0),(1,1)]'`, `"[(0,0),(1,1)]"`}, {`box`, `'(0,0),(1,1)'`, `"(1,1),(0,0)"`}, {`d_box`, `'(0,0),(1,1)'`, `"(1,1),(0,0)"`},
	{`path`, `'[(0,0),(1,1)]'`, `"[(0,0),(1,1)]"`}, {`polygon`, `'((0,0),(1,1))'`, `"((0,0),(1,1))"`}, {`circle`, `'<(0,0),1>'`, `"<(0,0),1>"`},
	{`tsvector`, `'a fat cat'`, `"'a' 'cat' 'fat'"`}, {`tsquery`, `'fat & cat'`, `"'fat' & 'cat'"`}, {`jsonpath`, `'$.a[*]'`, `"$.\"a\"[*]"`},
	{`pg_lsn`, `'16/B374D848'`, `"16/B374D848"`}, {`xid`, `'7'`, `"7"`}, {`xid8`, `'12345678901'`, `"12345678901"`}, {`cid`, `'8'`, `"8"`}, {`tid`, `'(3,4)'`, `"(3,4)"`},
	{`txid_snapshot`, `'10:20:10,14,15'`, `"10:20:10,14,15"`}, {`pg_snapshot`, `'10:20:10,14,15'`, `"10:20:10,14,15"`}, {`refcursor`, `'c'`, `"c"`},
	{`int2vector`, `'1 2 3'`, `"1 2 3"`}, {`oidvector`, `''`, `""`},
	{`regproc`, `'now'`, `"now"`}, {`regprocedure`, `'now()'`, `"now()"`}, {`regoper`, `'||/'`, `"||/"`}, {`regoperator`, `'+(integer,integer)'`, `"+(integer,integer)"`}, {`regclass`, `'pg_class'`, `"pg_class"`}, {`regclass`, `'many'`, `"public.many"`},
	{`regcollation`, `'"C"'`, `"\"C\""`}, {`regtype`, `'int4'`, `"integer"`}, {`regtype`, `'mood'`, `"public.mood"`}, {`regrole`, `10::regrole`, `"SUPERUSER"`}, {`regnamespace`, `'pg_catalog'`, `"pg_catalog"`}, {`regconfig`, `'simple'`, `"simple"`}, {`regdictionary`, `'simple'`, `"simple"`},
	{`aclitem`, `makeaclitem(10, 10, 'SELECT', false)`, `"SUPERUSER=r/SUPERUSER"`},
	{`int4range`, `'[1,5]'`, `"[1,6)"`}, {`int8range`, `'empty'`, `"empty"`}, {`numrange`, `'(1.5,]'`, `"(1.5,)"`}, {`daterange`, `'[2024-01-01,2024-01-05)'`, `"[2024-01-01,2024-01-05)"`},
	{`tsrange`, `'[2024-01-01 10:00,)'`, `"[\"2024-01-01 10:00:00\",)"`}, {`tstzrange`, `'[2024-01-01 10:00+05:30,)'`, `"[\"2024-01-01 04:30:00+00\",)"`}, {`floatrange`, `'[0.1,2)'`, `"[0.1,2)"`},
	{`int4multirange`, `'{[1,3),[5,7)}'`, `"{[1,3),[5,7)}"`}, {`int8multirange`, `'{}'`, `"{}"`}, {`nummultirange`, `'{[1,2]}'`, `"{[1,2]}"`}, {`datemultirange`, `'{[2024-01-01,2024-01-05)}'`, `"{[2024-01-01,2024-01-05)}"`},
	{`tsmultirange`, `'{}'`, `"{}"`}, {`tstzmultirange`, `'{[2024-01-01 10:00+05:30,)}'`, `"{[\"2024-01-01 04:30:00+00\",)}"`},
	{`mood`, `'ha"ppy'`, `"ha\"ppy"`}, {`d_mood`, `'sad'`, `"sad"`}, {`pair`, `ROW(1, 'x y', '2024-05-06 07:08:09+05:30')`, `"(1,\"x y\",\"2024-05-06 01:38:09+00\")"`}, {`d_pair`, `ROW(1, NULL, NULL)`, `"(1,,)"`},
	{`d_int`, `5`, `5`}, {`d_deep`, `6`, `6`},
	// Arrays.
	{`int4[]`, `'{1,NULL,-3}'`, `[1,null,-3]`}, {`int4[]`, `'{}'`, `[]`}, {`int2[]`, `'[2:3]={1,2}'`, `[1,2]`}, {`int8[]`, `'{{1,9223372036854775807},{3,NULL}}'`, `[[1,9223372036854775807],[3,null]]`}, {`oid[]`, `'{1}'`, `[1]`},
	{`int4[]`, `'[-1:0][2:2][7:7]={{{1}},{{2}}}'`, `[[[1]],[[2]]]`},
	{`float8[]`, `'{0.1,NaN,Infinity,-Infinity,-0,5e-324}'`, `[0.1,"NaN","Infinity","-Infinity",-0,5e-324]`}, {`float4[]`, `'{0.1}'`, `[0.1]`}, {`numeric[]`, `'{1.50,NaN}'`, `["1.50","NaN"]`}, {`numeric(5,1)[]`, `'{1.50}'`, `["1.5"]`},
	{`bool[]`, `'{t,f,NULL}'`, `[true,false,null]`}, {`bytea[]`, `ARRAY['\x00ff10','',NULL]::bytea[]`, `["AP8Q","",null]`},
	{`text[]`, `ARRAY[NULL,'NULL','null','','a,b','{c}',E'd\\e','f"g',' h ',E'i\nj','😀']`, `[null,"NULL","null","","a,b","{c}","d\\e","f\"g"," h ","i\nj","😀"]`},
	{`varchar(3)[]`, `'{ab,"c "}'`, `["ab","c "]`}, {`char(3)[]`, `'{ab}'`, `["ab "]`}, {`name[]`, `'{ab}'`, `["ab"]`}, {`"char"[]`, `'{x,","}'`, `["x",","]`}, {`uuid[]`, `'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'`, `["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]`},
	{`json[]`, `ARRAY['{"a": 1, "a":2}','null',NULL]::json[]`, `["{\"a\": 1, \"a\":2}","null",null]`}, {`jsonb[]`, `ARRAY['[1, "x"]']::jsonb[]`, `["[1, \"x\"]"]`},
	{`timestamptz[]`, `ARRAY['2024-05-06 07:08:09.5+05:30','infinity','0044-03-15 12:00:00+00 BC',NULL]::timestamptz[]`, `["2024-05-06T01:38:09.5Z","infinity","0044-03-15 12:00:00+00 BC",null]`}, {`timestamp[]`, `ARRAY['2024-05-06 07:08:09']::timestamp[]`, `["2024-05-06T07:08:09"]`}, {`d_instant[]`, `ARRAY['2024-05-06 07:08:09+01']::d_instant[]`, `["2024-05-06T06:08:09Z"]`},
	{`date[]`, `'{2024-05-06}'`, `["2024-05-06"]`}, {`time[]`, `'{24:00:00}'`, `["24:00:00"]`}, {`timetz[]`, `'{07:08:09+05:30}'`, `["07:08:09+05:30"]`}, {`interval[]`, `ARRAY['1 day 2 hours']::interval[]`, `["1 day 02:00:00"]`}, {`money[]`, `ARRAY['1234.5']::money[]`, `["$1,234.50"]`},
	{`inet[]`, `'{10.0.0.1/8}'`, `["10.0.0.1/8"]`}, {`cidr[]`, `'{10.0.0.0/8}'`, `["10.0.0.0/8"]`}, {`box[]`, `'{(0,0),(1,1);(2,2),(3,3);NULL}'`, `["(1,1),(0,0)","(3,3),(2,2)",null]`}, {`d_box[]`, `ARRAY['(0,0),(1,1)','(2,2),(3,3)']::d_box[]`, `["(1,1),(0,0)","(3,3),(2,2)"]`},
	{`point[]`, `ARRAY['(1,2)','(3,4)']::point[]`, `["(1,2)","(3,4)"]`}, {`bit(2)[]`, `'{10,01}'`, `["10","01"]`}, {`pg_lsn[]`, `'{0/1}'`, `["0/1"]`}, {`xid8[]`, `'{1}'`, `["1"]`}, {`int2vector[]`, `ARRAY['1 2']::int2vector[]`, `["1 2"]`}, {`regclass[]`, `'{pg_class}'`, `["pg_class"]`},
	{`int4range[]`, `ARRAY['[1,5)']::int4range[]`, `["[1,5)"]`}, {`int4multirange[]`, `ARRAY['{[1,5)}']::int4multirange[]`, `["{[1,5)}"]`}, {`mood[]`, `ARRAY['ha"ppy','so so',NULL]::mood[]`, `["ha\"ppy","so so",null]`}, {`pair[]`, `ARRAY[ROW(1, 'x y', NULL), ROW(2, '"', NULL)]::pair[]`, `["(1,\"x y\",)","(2,\"\"\"\",)"]`},
	{`d_ints`, `'{1,NULL}'`, `[1,null]`}, {`d_deep_ints`, `'{{1},{2}}'`, `[[1],[2]]`}, {`d_int[]`, `'{1,2}'`, `[1,2]`}, {`d_deep[]`, `'{3}'`, `[3]`}, {`d_bytes[]`, `ARRAY['\x5c']::d_bytes[]`, `["XA=="]`}, {`d_mood[]`, `'{sad}'`, `["sad"]`}, {`d_ints[]`, `ARRAY['{1,2}']::d_ints[]`, `["{1,2}"]`}, {`d_bool[]`, `'{t,f}'`, `[true,false]`},
}

// extraTypes are there when the server was built with them.
var extraTypes = map[string][]typeCase{
	`SELECT '<a/>'::xml`:      {{`xml`, `'<a b="c">é</a>'`, `"<a b=\"c\">é</a>"`}, {`xml`, `'text only'`, `"text only"`}, {`xml[]`, `ARRAY['<a/>']::xml[]`, `["<a/>"]`}},
	`CREATE EXTENSION hstore`: {{`hstore`, `'a=>1, b=>NULL'`, `"\"a\"=>\"1\", \"b\"=>NULL"`}, {`hstore[]`, `ARRAY['a=>"x,y"']::hstore[]`, `["\"a\"=>\"x,y\""]`}},
	`CREATE EXTENSION citext`: {{`citext`, `'MiXed "x"'`, `"MiXed \"x\""`}, {`citext[]`, `'{A,NULL}'`, `["A",null]`}},
	`CREATE EXTENSION ltree`:  {{`ltree`, `'Top.Sci_ence'`, `"Top.Sci_ence"`}, {`ltree[]`, `'{a.b}'`, `["a.b"]`}},
}
