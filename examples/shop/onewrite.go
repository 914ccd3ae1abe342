package shop

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// configFile is what the second act runs onewrite with: the whole of what it
// takes to reach five systems.
const configFile = "onewrite.yaml"

// writeConfig writes the configuration and a key for each consumer. Retries are
// quicker than the defaults, as this story is short.
func writeConfig(dir string, d database, listen string, addresses map[string]string) error {
	var b strings.Builder
	b.WriteString("sources:\n  shop:\n")
	if d.URL != "" {
		b.WriteString("    type: postgres\n    url: ${env:" + urlVariable + "}\n")
	} else {
		b.WriteString("    type: sqlite\n    path: " + filepath.Base(d.Path) + "\n")
	}
	b.WriteString("destinations:\n")
	for _, c := range consumers {
		fmt.Fprintf(&b, `  %s:
    type: webhook
    url: http://%s/
    allow_private: true
    secret: ${file:%s}
    topics: ["order.>"]
    retry: {first: 50ms, max: 1s}
`, c.name, addresses[c.name], keyFile(c.name))
		key := make([]byte, 32)
		rand.Read(key)
		text := "whsec_" + base64.StdEncoding.EncodeToString(key)
		if err := os.WriteFile(filepath.Join(dir, keyFile(c.name)), []byte(text), 0o600); err != nil {
			return fmt.Errorf("shop: %w", err)
		}
	}
	b.WriteString("bus:\n  dir: onewrite-data\nlisten: " + listen + "\n")
	if err := os.WriteFile(filepath.Join(dir, configFile), []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("shop: %w", err)
	}
	return nil
}

func keyFile(consumer string) string { return consumer + ".key" }

// urlVariable is where the configuration finds PostgreSQL's URL, so that the
// password is in no file and in no list of processes.
const urlVariable = "SHOP_DATABASE_URL"

// migrate makes the outbox in the service's database; env is added to our own.
func migrate(ctx context.Context, program, dir string, env []string) error {
	cmd := exec.CommandContext(ctx, program, "migrate", "-c", configFile)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("shop: onewrite migrate: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func environment(d database) []string {
	if d.URL == "" {
		return nil
	}
	return []string{urlVariable + "=" + d.URL}
}

// startOnewrite runs `onewrite run` with a keeper, and makes kill mean onewrite.
// self is the program that plays the keeper, the first word of args is onewrite.
func startOnewrite(ctx context.Context, self, dir string, env []string, args ...string) (*process, error) {
	s := keeperSettings{Args: args, Dir: dir, Env: env, Log: filepath.Join(dir, logFile)}
	p, word, err := startProcess(ctx, self, s, true, "keeper", "onewrite")
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(word)
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("shop: the keeper said %q in the place of a process id", word)
	}
	if p.target, err = os.FindProcess(pid); err != nil {
		p.stop()
		return nil, fmt.Errorf("shop: %w", err)
	}
	return p, nil
}

const logFile = "onewrite.log"

// awaitReady waits until onewrite says that it is ready, and tells the end of
// its log if it ends or stays unready.
func awaitReady(ctx context.Context, p *process, dir, listen string) error {
	deadline := time.Now().Add(20 * time.Second)
	client := &http.Client{Timeout: 2 * time.Second}
	defer client.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+"/readyz", nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.done:
			return fmt.Errorf("shop: onewrite run has ended: %s", logTail(dir))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("shop: onewrite is not ready after 20 s: %s", logTail(dir))
		}
	}
}

// logTail returns the end of onewrite's log.
func logTail(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		return err.Error()
	}
	if len(text) > 2000 {
		text = text[len(text)-2000:]
	}
	return strings.TrimSpace(string(text))
}
