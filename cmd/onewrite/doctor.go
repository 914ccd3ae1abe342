package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/disk"
	"github.com/onewrite/onewrite/relay"
)

func (a *app) doctor() *cobra.Command {
	var strict bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "doctor", Short: "Examine bus, sources, destinations and the rights they need", Args: cobra.NoArgs,
		Long: `Looks at everything that the configuration names: is it there and can it be
reached, are the rights enough and not too many, are settings, versions, clocks,
certificates and disks as they should be. What is not, comes with the SQL, the
command or the setting that cures it, on a line of its own.

It changes nothing and takes no lock, so it may run beside onewrite run, and
before onewrite migrate. Run it as the user and with the environment of
onewrite run. A webhook gets one HEAD request, without secrets and events.

Exit code 0: nothing worse than a warning; 3: a problem, or with --strict a
warning; 2: the configuration cannot be used.`,
		Example: `  onewrite doctor
  onewrite doctor --strict                  a warning is enough for exit code 3
  onewrite doctor --json | jq -r '.[] | select(.severity == "problem").cure'
  onewrite doctor -c /etc/onewrite.yaml --timeout 1m`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return usage(errors.New("--timeout must be longer than nothing, such as 10s"))
			}
			cfg, warnings, err := relay.Load(a.file)
			if err == nil && a.listen != "" {
				cfg.Listen = a.listen
				err = relay.Validate(cfg)
			}
			var problems config.Problems
			if a.json && errors.As(err, &problems) {
				if err := printJSON(cmd.OutOrStdout(), ofConfig(append(problems, warnings...))); err != nil {
					return err
				}
				return exitCode{2, nil}
			}
			if err != nil {
				return usage(err)
			}
			found := append(ofConfig(warnings), relay.Doctor(cmd.Context(), cfg, relay.DoctorOptions{ConfigPath: a.file, Timeout: timeout})...)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			a.name(found)
			if a.json {
				if err := printJSON(cmd.OutOrStdout(), found); err != nil {
					return err
				}
			} else {
				printFindings(cmd.OutOrStdout(), found)
			}
			worst := diagnosis.OK
			for _, f := range found {
				worst = max(worst, f.Severity)
			}
			if worst == diagnosis.Problem || strict && worst == diagnosis.Warning {
				return exitCode{3, nil}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "exit with 3 for a warning too")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "`time` for each source, destination and the bus; all are examined at once")
	a.jsonFlag(c)
	a.listenFlag(c)
	return c
}

var ownCommand = regexp.MustCompile(`\bonewrite (check|doctor|migrate|reload|run|status)\b`)

// name puts the configuration into the commands of the cures, where it is not the
// one that they would take.
func (a *app) name(found []diagnosis.Finding) {
	if a.file == defaultFile {
		return
	}
	for i := range found {
		found[i].Cure = ownCommand.ReplaceAllString(found[i].Cure, "$0 -c "+strings.ReplaceAll(disk.Quote(a.file), "$", "$$"))
	}
}

// seenBetter begin the warnings of a file about what the doctor looks at itself.
var seenBetter = []string{"connects as postgres", "the connection to another machine may be", "without a secret the receiver", "any certificate is accepted"}

// ofConfig makes findings of what is wrong with a file.
func ofConfig(problems config.Problems) []diagnosis.Finding {
	out := []diagnosis.Finding{}
	for _, p := range problems {
		if p.Warning && slices.ContainsFunc(seenBetter, func(begin string) bool { return strings.HasPrefix(p.Message, begin) }) {
			continue
		}
		f := diagnosis.Finding{Severity: diagnosis.Problem, Subject: "configuration", Check: "file", Text: p.Message, Cure: p.Cure}
		if p.Warning {
			f.Severity = diagnosis.Warning
		}
		if p.Path != "" {
			f.Check, f.Text = "setting", p.Path+": "+p.Message
		}
		if p.Line > 0 {
			f.Text = fmt.Sprintf("%s:%d: %s", p.File, p.Line, f.Text)
		}
		out = append(out, f)
	}
	return out
}

// printFindings writes one line a finding, below its subject, and below it the cure.
func printFindings(w io.Writer, found []diagnosis.Finding) {
	width := 0
	for _, f := range found {
		width = max(width, len(f.Check))
	}
	counts := map[diagnosis.Severity]int{}
	for i, f := range found {
		if i == 0 || f.Subject != found[i-1].Subject {
			fmt.Fprintln(w, f.Subject)
		}
		counts[f.Severity]++
		fmt.Fprintf(w, "  %-8s %-*s  %s\n", f.Severity, width, f.Check, f.Text)
		if f.Cure != "" {
			fmt.Fprintf(w, "           %s\n", f.Cure)
		}
	}
	fmt.Fprintf(w, "\n%s, %s, %d ok\n", count(counts[diagnosis.Problem], "problem"), count(counts[diagnosis.Warning], "warning"), counts[diagnosis.OK])
}
