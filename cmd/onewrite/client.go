package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/pipeline"
)

// client talks to the running instance. file is the configuration that it should
// run with; empty if the user named its address.
type client struct{ base, token, file string }

// client finds the instance by the configuration's listen address.
func (a *app) client() (*client, error) {
	listen, token, err := config.Endpoint(a.file)
	if err != nil && a.listen == "" {
		return nil, usage(err)
	}
	if a.listen != "" { // the address is enough; the file may be the broken one
		listen = a.listen
	}
	if listen == "" || listen == "off" {
		return nil, usage(fmt.Errorf("%s sets no listen address; add listen: 127.0.0.1:8484 and start onewrite again", a.file))
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, usage(fmt.Errorf("listen: %w", err))
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	c := &client{base: "http://" + net.JoinHostPort(host, port), token: token.Reveal()}
	if a.listen == "" {
		c.file = a.file
	}
	return c, nil
}

// foreign returns an error if the instance runs with another file: two files may
// name the same address, and a command must not change the other's instance.
func (c *client) foreign(s dashboard.Status) error {
	if c.file == "" || s.Config == "" {
		return nil
	}
	path, err := filepath.Abs(c.file)
	if err != nil || path == s.Config {
		return err
	}
	mine, err := os.Stat(path)
	if err != nil {
		return err
	}
	if its, err := os.Stat(s.Config); err == nil && os.SameFile(mine, its) {
		return nil
	}
	return fmt.Errorf("the instance at %s runs with %s, not with %s; give -c %s to mean that one, or start one with %s on an address of its own",
		c.base, s.Config, path, s.Config, c.file)
}

// same asks the instance which file it runs with, before anything is changed.
func (c *client) same(ctx context.Context) error {
	if c.file == "" {
		return nil
	}
	var s dashboard.Status
	if err := c.call(ctx, "GET", "/api/status", nil, &s); err != nil {
		return err
	}
	return c.foreign(s)
}

// do sends a request; an answer other than 2xx is an error with its text.
func (c *client) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	if method != "GET" {
		if err := c.same(ctx); err != nil {
			return nil, err
		}
	}
	u := c.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("no instance answers at %s: %w; start it with onewrite run, or name its address with --listen", c.base, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var e struct{ Error string }
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(text, &e) != nil || e.Error == "" { // something else than onewrite may listen there
		return nil, fmt.Errorf("%s answered %s: %s", u, resp.Status, text)
	}
	return nil, errors.New(e.Error)
}

// get decodes the answer into v.
func (c *client) call(ctx context.Context, method, path string, query url.Values, v any) error {
	return c.send(ctx, method, path, query, nil, v)
}

// send is call with a body.
func (c *client) send(ctx context.Context, method, path string, query url.Values, body io.Reader, v any) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}

func (a *app) status() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Show what the running instance does", Args: cobra.NoArgs,
		Example: "  onewrite status\n  onewrite status --json | jq .destinations.warehouse.pending",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			var s dashboard.Status
			if err := cl.call(cmd.Context(), "GET", "/api/status", nil, &s); err != nil {
				return err
			}
			if err := cl.foreign(s); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", err)
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			printStatus(cmd.OutOrStdout(), s)
			return nil
		},
	}
	a.jsonFlag(c)
	a.listenFlag(c)
	return c
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printStatus(w io.Writer, s dashboard.Status) {
	kind := "external"
	if s.Bus.Embedded {
		kind = "embedded"
	}
	fmt.Fprintf(w, "onewrite %s, pid %d, up %s\n", cmp.Or(s.Version, "(embedded)"), s.PID, time.Since(s.Started).Round(time.Second))
	if s.Config != "" {
		fmt.Fprintf(w, "config: %s\n", s.Config)
	}
	events, bytes := count(int(s.Bus.Messages), "event"), size(s.Bus.Bytes)
	if s.Bus.Unknown {
		events, bytes = "? events", "?"
	}
	fmt.Fprintf(w, "bus: %s, %s kept, %s of %s\n\n", kind, events, bytes, size(s.Bus.MaxBytes))
	var table strings.Builder
	t := tabwriter.NewWriter(&table, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SOURCE\tSTATE\tEVENTS\tLAG")
	for _, name := range sortedKeys(s.Sources) {
		v := s.Sources[name]
		events := strconv.FormatUint(v.Events, 10)
		if v.Unknown {
			events = "?"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, v.State, events, seconds(v.LagSeconds))
	}
	fmt.Fprintln(t, "\t\t\t\nDESTINATION\tSTATE\tDELIVERED\tPENDING\tPARKED\tLAG")
	for _, name := range sortedKeys(s.Destinations) {
		v := s.Destinations[name]
		if v.Unknown {
			fmt.Fprintf(t, "%s\t%s\t?\t?\t?\t?\n", name, v.State)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\n", name, v.State, v.Delivered, v.Pending, v.Parked, seconds(v.LagSeconds))
	}
	t.Flush()
	for line := range strings.Lines(table.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n")) // the columns go through an empty line too
	}
	if s.Bus.LastError != "" {
		fmt.Fprintf(w, "\nbus: %s\n", s.Bus.LastError)
	}
	for _, name := range sortedKeys(s.Sources) {
		v := s.Sources[name]
		switch { // it may be healed since long, and say nothing of what is wrong now
		case v.Gap != nil && v.GapAt != nil && (v.State == pipeline.OK || v.State == pipeline.CatchingUp):
			fmt.Fprintf(w, "\nsource %s: gap at %s, reading went on: %s\n", name, v.GapAt.Local().Format(time.DateTime), *v.Gap)
		case v.Gap != nil:
			fmt.Fprintf(w, "\nsource %s: gap: %s\n", name, *v.Gap)
		}
		if v.LastError != "" && (v.Gap == nil || *v.Gap != v.LastError) {
			fmt.Fprintf(w, "\nsource %s: %s\n", name, v.LastError)
		}
		if v := s.Sources[name].Importing; v != nil && *v > 0 {
			fmt.Fprintf(w, "\nsource %s: %d rows wait to be imported (counted up to 10,000 a table)\n", name, *v)
		}
		for _, table := range sortedKeys(s.Sources[name].Snapshots) {
			v := s.Sources[name].Snapshots[table]
			fmt.Fprintf(w, "\nsource %s: snapshot of %s: %d of about %d rows%s\n", name, table, v.Rows, v.About, left(v.LeftSeconds))
		}
	}
	for _, name := range sortedKeys(s.Destinations) {
		if v := s.Destinations[name]; v.LastError != "" {
			fmt.Fprintf(w, "\ndestination %s: %s\n", name, v.LastError)
		}
	}
	for _, text := range s.Warnings {
		fmt.Fprintf(w, "\nwarning: %s\n", text)
	}
}

// left says how long something takes from now.
func left(seconds *float64) string {
	if seconds == nil {
		return ""
	}
	return fmt.Sprintf(", about %s left", time.Duration(*seconds*float64(time.Second)).Round(time.Second))
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}

func size(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for v >= 1000 && i < len(units)-1 {
		v /= 1000
		i++
	}
	return strconv.FormatFloat(v, 'f', min(i, 1), 64) + " " + units[i]
}

func (a *app) tail() *cobra.Command {
	var topics []string
	var from string
	var count int
	c := &cobra.Command{
		Use: "tail", Short: "Show events as they pass, a CloudEvents JSON line each", Args: cobra.NoArgs,
		Example: "  onewrite tail --topic 'order.>'\n  onewrite tail --from beginning -n 10",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			if _, err := dashboard.ParseFrom(from); err != nil {
				return usage(err)
			}
			for _, pattern := range topics {
				if err := config.CheckTopic(pattern); err != nil {
					return usage(err)
				}
			}
			resp, err := cl.do(cmd.Context(), "GET", "/api/tail", url.Values{"topic": topics, "from": {from}}, nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			lines := bufio.NewReaderSize(resp.Body, 1<<20)
			for n := 0; count == 0 || n < count; n++ {
				line, err := lines.ReadBytes('\n')
				if err != nil {
					if cmd.Context().Err() != nil {
						return cmd.Context().Err()
					}
					return fmt.Errorf("the instance ended the stream: %w", err)
				}
				if _, err := cmd.OutOrStdout().Write(line); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().StringSliceVar(&topics, "topic", nil, "NATS `pattern` of topics, may be repeated")
	c.Flags().StringVar(&from, "from", "now", "beginning, now or an RFC 3339 time")
	c.Flags().IntVarP(&count, "count", "n", 0, "end after so many events")
	a.listenFlag(c)
	return c
}

func (a *app) reload() *cobra.Command {
	var forget []string
	c := &cobra.Command{
		Use: "reload", Short: "Make the running instance read its file again", Args: cobra.NoArgs,
		Long: `Destinations come, go and change. A bad file leaves the old configuration
running and says why. A change of source, bus or listen needs a restart. A
destination with pending or parked events goes only with --forget. To remove one
on an external bus, reload the standbys before the copy that delivers.`,
		Example: "  onewrite reload\n  onewrite reload --forget old-webhook",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			var r dashboard.Reload
			if err := cl.call(cmd.Context(), "POST", "/api/reload", url.Values{"forget": forget}, &r); err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), r)
			}
			for _, w := range r.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			printReload(cmd.OutOrStdout(), r)
			return nil
		},
	}
	c.Flags().StringSliceVar(&forget, "forget", nil, "`destination` that may go with its pending events")
	a.jsonFlag(c)
	a.listenFlag(c)
	return c
}

func printReload(out io.Writer, r dashboard.Reload) {
	for what, names := range map[string][]string{"added": r.Added, "removed": r.Removed, "changed": r.Changed, "started again": r.Started, "forgot": r.Forgotten} {
		for _, n := range names {
			went := ""
			if d, ok := r.Dropped[n]; ok && d.Pending+d.Parked > 0 {
				went = fmt.Sprintf(", and with it %d pending and %d parked events", d.Pending, d.Parked)
			}
			fmt.Fprintf(out, "%s %s%s\n", what, n, went)
		}
	}
	for _, s := range r.Restart {
		fmt.Fprintf(out, "%s changed: restart onewrite to apply it\n", s)
	}
	if len(r.Added)+len(r.Removed)+len(r.Changed)+len(r.Started)+len(r.Forgotten)+len(r.Restart) == 0 {
		fmt.Fprintln(out, "nothing changed")
	}
}
