package search

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// leastGC is below what a repeat may take to come after a delete: the server then has
// forgotten the version of what was deleted, and takes an older document.
const leastGC = time.Hour

// Examine looks at a cluster, and at the indices of the topics that the destination
// takes, and says what it finds; the caller adds the Subject. It writes nothing.
func Examine(ctx context.Context, c Config, topics []string) []diagnosis.Finding {
	e := &examiner{List: diagnosis.List{Prefix: "search: "}, c: c, topics: topics}
	addresses, err := e.c.prepare()
	if err != nil {
		e.Failed("url", err)
		return e.Found
	}
	e.http = newClient(&e.c, addresses)
	defer e.http.close()
	up := -1
	for i := range addresses {
		e.http.at = i
		if e.reach(ctx) && up < 0 {
			up = i
		}
	}
	if up < 0 {
		return e.Found
	}
	e.http.at = up
	e.login(ctx)
	e.health(ctx)
	e.rights(ctx)
	e.settings(ctx)
	e.mappings(ctx)
	return e.Found
}

type examiner struct {
	diagnosis.List
	c      Config
	topics []string // patterns; none: all
	http   *client
}

// get reads a page as JSON; false if the server has none, which it has said then.
func (e *examiner) get(ctx context.Context, method, path, body string, into any) (*answer, bool) {
	a, err := e.http.call(ctx, method, path, []byte(body))
	if err != nil {
		return &answer{}, false
	}
	return a, a.ok() && json.Unmarshal(a.body, into) == nil
}

// reach asks for the version. Servers without that page are no less of use.
func (e *examiner) reach(ctx context.Context) bool {
	a, err := e.http.call(ctx, http.MethodGet, "/", nil)
	if err != nil {
		e.Failed("connection", err)
		return false
	}
	var root struct {
		Version struct {
			Number       string `json:"number"`
			Distribution string `json:"distribution"`
		} `json:"version"`
	}
	_ = json.Unmarshal(a.body, &root)
	name := "Elasticsearch"
	if root.Version.Distribution == "opensearch" {
		name = "OpenSearch"
	}
	switch {
	case root.Version.Number == "":
		e.Add(diagnosis.OK, "connection", "", "%s answers", e.http.host())
	case name == "Elasticsearch" && slices.Contains([]string{"0", "1", "2", "5", "6"}, strings.SplitN(root.Version.Number, ".", 2)[0]):
		e.Add(diagnosis.Problem, "version", "upgrade to Elasticsearch 7.10 or newer, or OpenSearch", "%s is Elasticsearch %s, which is too old", e.http.host(), root.Version.Number)
	default:
		e.Add(diagnosis.OK, "connection", "", "%s is %s %s", e.http.host(), name, root.Version.Number)
	}
	if e.http.addresses[e.http.at].url.Scheme == "http" && e.http.addresses[e.http.at].auth != "" && !local(e.http.addresses[e.http.at].url.Hostname()) {
		e.Add(diagnosis.Warning, "tls", "url: https://"+e.http.host(), "none: whoever is on the way can read the password and the documents")
	}
	if e.c.TLS != nil && e.c.TLS.InsecureSkipVerify {
		e.Add(diagnosis.Warning, "tls", "tls: {ca: http_ca.crt}", "any certificate is accepted: whoever is on the way can read the password and the documents")
	}
	return true
}

func local(host string) bool {
	return host == "localhost" || host == "::1" || strings.HasPrefix(host, "127.")
}

// login reads what is remembered of the sources, as the sink does first.
func (e *examiner) login(ctx context.Context) {
	st := newState(&e.c)
	if err := st.load(ctx, e.http); err != nil {
		e.Failed("login", err)
		return
	}
	e.Add(diagnosis.OK, "login", "", "the user may read %s", stateIndex)
	for _, name := range slices.Sorted(maps.Keys(st.Tracks)) {
		if n := len(st.Tracks[name].Eras); n > 1 {
			last := st.Tracks[name].Eras[n-1]
			e.Add(diagnosis.OK, "eras", "", "%s counted from below again %d times, last after %s", name, n-1, time.UnixMicro(last.From-1).UTC().Format(time.RFC3339))
		}
	}
}

func (e *examiner) health(ctx context.Context) {
	var h struct {
		Status     string `json:"status"`
		Unassigned int    `json:"unassigned_shards"`
	}
	a, ok := e.get(ctx, http.MethodGet, "/_cluster/health", "", &h)
	look := "curl -sS '" + e.http.origin() + "/_cluster/allocation/explain?pretty'"
	switch {
	case !ok && a.status == http.StatusForbidden:
		e.Add(diagnosis.Warning, "health", "give the user the cluster privilege monitor", "the user may not ask for the state of the cluster")
	case !ok:
		e.Add(diagnosis.Problem, "health", "curl -sS "+e.http.origin()+"/_cluster/health", "the cluster does not tell its state: %d %s", a.status, problemOf(a))
	case h.Status == "red":
		e.Add(diagnosis.Problem, "health", look, "the cluster is red: primary shards are away, and what they hold cannot be written")
	case h.Status == "yellow":
		e.Add(diagnosis.Warning, "health", look, "the cluster is yellow: %d copies of shards are away, and what the last one holds goes with its node", h.Unassigned)
	default:
		e.Add(diagnosis.OK, "health", "", "the cluster is %s", h.Status)
	}
}

// patterns are those of the indices that the template may name.
func (e *examiner) patterns() []string {
	topics := e.topics
	if len(topics) == 0 {
		topics = []string{">"}
	}
	var list []string
	for _, topic := range topics {
		// What stands for anything survives as a character that no name has.
		text := strings.NewReplacer(">", "\x00", "*", "\x00").Replace(strings.ReplaceAll(e.c.Index, "{topic}", topic))
		parts := strings.Split(placeholder.ReplaceAllString(text, "\x00"), "\x00")
		for i := range parts {
			if i > 0 || parts[0] == "" { // "index" stands in front of a name alone
				parts[i] = strings.TrimPrefix(indexName("x"+parts[i]), "x")
			} else {
				parts[i] = indexName(parts[i])
			}
		}
		if pattern := strings.Join(parts, "*"); !slices.Contains(list, pattern) {
			list = append(list, pattern)
		}
	}
	return list
}

// pattern is all of them as a part of a path.
func (e *examiner) pattern() string { return strings.Join(e.patterns(), ",") }

// rights asks what the user may do. OpenSearch, and a server without security, do not
// tell.
func (e *examiner) rights(ctx context.Context) {
	type want struct {
		Names      []string `json:"names"`
		Privileges []string `json:"privileges"`
	}
	ask, _ := json.Marshal(map[string][]want{"index": {
		{e.patterns(), []string{"index", "delete", "read", "create_index", "maintenance"}},
		{[]string{stateIndex}, []string{"index", "read", "create_index"}},
	}})
	var has struct {
		Index map[string]map[string]bool `json:"index"`
	}
	if _, ok := e.get(ctx, http.MethodPost, "/_security/user/_has_privileges", string(ask), &has); !ok {
		return
	}
	all := true
	for _, name := range slices.Sorted(maps.Keys(has.Index)) {
		var lacks []string
		for _, p := range slices.Sorted(maps.Keys(has.Index[name])) {
			if !has.Index[name][p] {
				lacks = append(lacks, p)
			}
		}
		if len(lacks) == 0 {
			continue
		}
		all = false
		// Of a pattern, the user may have what is needed for some of it.
		severity := diagnosis.Problem
		if strings.Contains(name, "*") {
			severity = diagnosis.Warning
		}
		e.Add(severity, "rights", fmt.Sprintf(`give its role: {"indices":[{"names":[%q],"privileges":["create_index","index","delete","read","maintenance"]}]}`, name), "on %s the user lacks %s", name, strings.Join(lacks, ", "))
	}
	if all {
		e.Add(diagnosis.OK, "rights", "", "the user may write %s and %s", e.pattern(), stateIndex)
	}
}

// settings looks for what would lose documents or keep them out.
func (e *examiner) settings(ctx context.Context) {
	var indices map[string]struct {
		Settings map[string]any `json:"settings"`
	}
	path := "/" + e.pattern() + "/_settings?flat_settings=true&ignore_unavailable=true&allow_no_indices=true&expand_wildcards=open"
	a, ok := e.get(ctx, http.MethodGet, path, "", &indices)
	if !ok {
		if a.status != http.StatusNotFound {
			e.Add(diagnosis.Warning, "settings", "give its role the privilege view_index_metadata", "the settings of %s cannot be read: %d", e.pattern(), a.status)
		}
		return
	}
	short := ""
	for _, name := range slices.Sorted(maps.Keys(indices)) {
		if strings.HasPrefix(name, ".") { // the server's own
			continue
		}
		is := func(key, value string) bool { return fmt.Sprint(indices[name].Settings[key]) == value }
		change := func(key string) string {
			return fmt.Sprintf("curl -sS -X PUT '%s/%s/_settings' -H 'Content-Type: application/json' -d '{\"%s\":null}'", e.http.origin(), name, key)
		}
		for _, block := range []string{"index.blocks.read_only_allow_delete", "index.blocks.write", "index.blocks.read_only"} {
			if is(block, "true") {
				severity := diagnosis.Problem
				if slices.Contains(e.patterns(), "*") { // it may be somebody else's
					severity = diagnosis.Warning
				}
				e.Add(severity, "blocks", change(block), "%s takes no documents: %s", name, block)
			}
		}
		if is("index.translog.durability", "async") {
			e.Add(diagnosis.Warning, "durability", change("index.translog.durability"), "%s answers before the document is on the disk: a crash loses what is confirmed", name)
		}
		if gc, set := indices[name].Settings["index.gc_deletes"]; name != stateIndex && short == "" && (!set || below(fmt.Sprint(gc), leastGC)) {
			short = name
		}
	}
	if short != "" {
		e.Add(diagnosis.Warning, "deletes", fmt.Sprintf("curl -sS -X PUT '%s/%s/_settings' -H 'Content-Type: application/json' -d '{\"index.gc_deletes\":\"25h\"}'", e.http.origin(), short),
			"%s forgets the version of a deleted document within %v: an older event that comes again after that makes it anew, until its delete comes again too", short, leastGC)
	}
}

// below reports whether a time as the server writes it is shorter than least.
func below(text string, least time.Duration) bool {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		text = days + "h" // a day is no less than an hour
	}
	d, err := time.ParseDuration(text)
	return err == nil && d >= 0 && d < least
}

// mappings says which indices refuse fields that they do not know.
func (e *examiner) mappings(ctx context.Context) {
	var indices map[string]struct {
		Mappings struct {
			Dynamic any `json:"dynamic"`
		} `json:"mappings"`
	}
	if _, ok := e.get(ctx, http.MethodGet, "/"+e.pattern()+"/_mapping?ignore_unavailable=true&allow_no_indices=true&expand_wildcards=open", "", &indices); !ok {
		return
	}
	var strict []string
	for _, name := range slices.Sorted(maps.Keys(indices)) {
		if indices[name].Mappings.Dynamic == "strict" {
			strict = append(strict, name)
		}
	}
	if len(strict) > 0 {
		e.Add(diagnosis.OK, "mappings", "", "strict: %s; a document with a field that is not there is refused and parked", strings.Join(strict, ", "))
	}
}
