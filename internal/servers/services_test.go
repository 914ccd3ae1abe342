package servers_test

import (
	"bufio"
	"net/http"
	"net/smtp"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
)

// What a mail server has taken is there after a kill.
func TestMailpit(t *testing.T) {
	m := servers.NewMailpit(t)
	send := func() {
		t.Helper()
		if err := smtp.SendMail(m.SMTP(), nil, "a@example.com", []string{"b@example.com"}, []byte("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	total := func() int {
		t.Helper()
		var page struct{ Total int }
		if err := m.Get("/api/v1/messages", &page); err != nil {
			t.Fatal(err)
		}
		return page.Total
	}
	send()
	pid := m.Pid()
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if m.Pid() != 0 || m.Get("/api/v1/messages", nil) == nil {
		t.Error("it answers after a kill")
	}
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	if n := total(); n != 1 || m.Pid() == pid {
		t.Errorf("%d mails after a kill", n)
	}
	send()
	if n := total(); n != 2 {
		t.Errorf("%d mails", n)
	}
}

// The mail server and S3 end with the process that started them, as PostgreSQL does.
func TestServicesEndWithTheTest(t *testing.T) {
	if os.Getenv("ONEWRITE_TEST_VICTIM") == "2" {
		servers.Mailpit(t)
		servers.Moto(t)
		os.Stdout.WriteString("\nready\n")
		<-t.Context().Done() // until killed
		return
	}
	servers.Mailpit(t) // skips here if there is none
	s3 := servers.Moto(t)
	s3.Bucket(t, "services")
	if resp, err := http.Get(s3.URL() + "/moto-api/data.json"); err != nil || resp.Body.Close() != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("moto: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	temp := openTempDir(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestServicesEndWithTheTest$", "-test.timeout=120s")
	cmd.Env = append(os.Environ(), "ONEWRITE_TEST_VICTIM=2", "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		ready = lines.Text() == "ready"
	}
	if entries, _ := os.ReadDir(temp); !ready || len(entries) != 2 || len(processesWith(t, temp)) < 2 {
		t.Errorf("ready: %v; %d folders, processes %q while two servers run", ready, len(entries), processesWith(t, temp))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		entries, err := os.ReadDir(temp)
		if err == nil && len(entries) == 0 && len(processesWith(t, temp)) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: folders %v, processes %q", entries, processesWith(t, temp))
		}
	}
}
