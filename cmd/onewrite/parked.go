package main

import (
	"bytes"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite/dashboard"
)

func (a *app) parked() *cobra.Command {
	c := &cobra.Command{
		Use: "parked", Short: "List, show, retry or skip events that a destination refused",
		Example: "  onewrite parked list warehouse\n  onewrite parked show warehouse 42\n  onewrite parked retry warehouse 42",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list := &cobra.Command{
		Use: "list [destination]", Short: "List parked events", Args: cobra.MaximumNArgs(1),
		Long: `ATTEMPTS counts the failures that were held against the event, as retry.attempts
does: what failed in an outage is not among them. It is 0 for an event that waits
behind another one of its key. REASON is the answer that had it parked, at most
1,024 bytes, or to the newest parked retry, 256; *** stands for what it repeats of the payload, of headers and of
secrets. show prints the payload.`,
		Example: "  onewrite parked list\n  onewrite parked list warehouse --json",
		RunE:    a.parkedList,
	}
	a.jsonFlag(list)
	var payload bool
	show := &cobra.Command{
		Use: "show destination ref", Short: "Show one parked event with its payload", Args: cobra.ExactArgs(2),
		Example: "  onewrite parked show warehouse 42\n  onewrite parked show warehouse 42 --payload > fixed.json",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.parkedShow(cmd, args, payload) },
	}
	show.Flags().BoolVar(&payload, "payload", false, "print the payload alone, byte for byte")
	var all bool
	var with string
	retry := &cobra.Command{
		Use: "retry destination [ref]", Short: "Deliver a parked event and what waits behind it", Args: cobra.RangeArgs(1, 2),
		Long: `With --payload the event gets the content of a file in place of its own payload. Its
id and all else stay; if it is refused again, it stays parked as it was. Consumers
that have not seen the id take it as they would have taken the first one.`,
		Example: "  onewrite parked retry warehouse 42\n  onewrite parked retry warehouse 42 --payload fixed.json\n  onewrite parked retry warehouse --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) == 2) {
				return usage(fmt.Errorf("name one ref, or --all"))
			}
			if all && with != "" {
				return usage(fmt.Errorf("--payload is for one event: name its ref in place of --all"))
			}
			return a.parkedAct(cmd, args, "retry", with)
		},
	}
	retry.Flags().BoolVar(&all, "all", false, "every parked event of the destination")
	retry.Flags().StringVar(&with, "payload", "", "deliver it with the content of this `file`; - is the standard input")
	skip := &cobra.Command{
		Use: "skip destination ref", Short: "Forget a parked event undelivered; what waits behind it goes on", Args: cobra.ExactArgs(2),
		Example: "  onewrite parked skip warehouse 42",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.parkedAct(cmd, args, "skip", "") },
	}
	for _, sub := range []*cobra.Command{list, show, retry, skip} {
		a.listenFlag(sub)
		c.AddCommand(sub)
	}
	return c
}

func (a *app) parkedList(cmd *cobra.Command, args []string) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	names := args
	if len(names) == 0 {
		var s dashboard.Status
		if err := cl.call(cmd.Context(), "GET", "/api/status", nil, &s); err != nil {
			return err
		}
		for _, n := range sortedKeys(s.Destinations) {
			if s.Destinations[n].Parked > 0 {
				names = append(names, n)
			}
		}
	}
	all := map[string][]dashboard.Parked{}
	for _, n := range names {
		for after := uint64(0); ; {
			var page []dashboard.Parked
			q := url.Values{"after": {strconv.FormatUint(after, 10)}, "limit": {"1000"}}
			if err := cl.call(cmd.Context(), "GET", "/api/parked/"+url.PathEscape(n), q, &page); err != nil {
				return err
			}
			all[n] = append(all[n], page...)
			if len(page) < 1000 {
				break
			}
			after = page[len(page)-1].Ref
		}
	}
	if a.json {
		return printJSON(cmd.OutOrStdout(), all)
	}
	printParked(cmd.OutOrStdout(), all)
	return nil
}

func printParked(w io.Writer, all map[string][]dashboard.Parked) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing is parked")
		return
	}
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DESTINATION\tREF\tID\tTOPIC\tKEY\tATTEMPTS\tPARKED\tREASON")
	for _, n := range sortedKeys(all) {
		for _, p := range all[n] {
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%d\t%s\t%s\n", n, p.Ref, p.ID, p.Topic, p.Key, p.Attempts, p.At.Format(time.DateTime), p.Reason)
		}
	}
	t.Flush()
	for _, n := range sortedKeys(all) {
		if list := all[n]; len(list) > 0 {
			fmt.Fprintf(w, "when the reasons are gone: onewrite parked retry %s --all; to give one up: onewrite parked skip %s %d\n", n, n, list[0].Ref)
		}
	}
}

func (a *app) parkedShow(cmd *cobra.Command, args []string, payload bool) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(args[1], 10, 64); err != nil {
		return usage(fmt.Errorf("ref %q is not a number; see onewrite parked list %s", args[1], args[0]))
	}
	var list []dashboard.Parked
	if err := cl.call(cmd.Context(), "GET", "/api/parked/"+url.PathEscape(args[0]), url.Values{"ref": {args[1]}}, &list); err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("destination %s has no parked event %s; see onewrite parked list %s", args[0], args[1], args[0])
	}
	if payload {
		_, err = cmd.OutOrStdout().Write(list[0].Payload)
		return err
	}
	list[0].Payload = nil // it is in the event
	return printJSON(cmd.OutOrStdout(), list[0])
}

// parkedAct retries or skips; payload names a file with what the event gets.
func (a *app) parkedAct(cmd *cobra.Command, args []string, what, payload string) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	q := url.Values{}
	if len(args) == 2 {
		if n, err := strconv.ParseUint(args[1], 10, 64); err != nil || n == 0 {
			return usage(fmt.Errorf("ref %q is not a number; see onewrite parked list %s", args[1], args[0]))
		}
		q.Set("ref", args[1])
	}
	body, err := readPayload(cmd, payload)
	if err != nil {
		return err
	}
	if len(args) == 1 {
		var list []dashboard.Parked
		if err := cl.call(cmd.Context(), "GET", "/api/parked/"+url.PathEscape(args[0]), url.Values{"limit": {"1"}}, &list); err != nil {
			return err
		}
		if len(list) == 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: nothing is parked\n", args[0])
			return nil
		}
	}
	var answer map[string]any
	if err := cl.send(cmd.Context(), "POST", "/api/parked/"+url.PathEscape(args[0])+"/"+what, q, body, &answer); err != nil {
		return err
	}
	done := map[string]string{"retry": "is being delivered again; follow it with onewrite status", "skip": "is forgotten; what waited behind it goes on"}
	subject := "event"
	if len(args) == 2 {
		subject += " " + args[1]
	} else {
		subject = "everything parked"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s %s\n", args[0], subject, done[what])
	return nil
}

// readPayload reads the file of --payload; nil without one.
func readPayload(cmd *cobra.Command, file string) (io.Reader, error) {
	var data []byte
	var err error
	switch file {
	case "":
		return nil, nil
	case "-":
		data, err = io.ReadAll(cmd.InOrStdin())
	default:
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, usage(err)
	}
	if len(data) == 0 {
		return nil, usage(fmt.Errorf("%s is empty", file))
	}
	return bytes.NewReader(data), nil
}

func (a *app) replay() *cobra.Command {
	var from string
	c := &cobra.Command{
		Use: "replay destination --from beginning|TIME", Short: "Deliver again what the bus still keeps", Args: cobra.ExactArgs(1),
		Long: `The destination's place is moved back and everything the bus stored since
then is delivered again, in order, with the same ids. Consumers that remember
ids see no second effect. The bus keeps confirmed events as long as bus.keep says.`,
		Example: "  onewrite replay warehouse --from 2026-01-02T15:04:05Z\n  onewrite replay archive --from beginning",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			if _, err := dashboard.ParseFrom(from); err != nil || from == "" || from == "now" {
				return usage(fmt.Errorf("--from is needed, %q is neither beginning nor a time like 2006-01-02T15:04:05Z", from))
			}
			var answer map[string]any
			if err := cl.call(cmd.Context(), "POST", "/api/replay/"+url.PathEscape(args[0]), url.Values{"from": {from}}, &answer); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: replaying from %s; follow it with onewrite status\n", args[0], from)
			return nil
		},
	}
	c.Flags().StringVar(&from, "from", "", "beginning or an RFC 3339 time")
	a.listenFlag(c)
	return c
}
