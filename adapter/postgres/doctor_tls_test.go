//go:build unix

package postgres

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestExamineTLS connects over another address than the loopback to a server with a
// certificate for it.
func TestExamineTLS(t *testing.T) {
	host := outside(t)
	for _, version := range servers.Versions() {
		pg := servers.NewPostgres(t, version)
		w := newWard(t, pg)
		cert := encrypt(t, w, host)
		u, _ := url.Parse(w.relay.URL(w.admin))
		u.Host = proxy(t, host, pg.Addr(), func([]byte) {})
		with := func(values url.Values) findings {
			u.RawQuery = values.Encode()
			return examineURL(t, u.String(), w.o)
		}
		eventually(t, "the server encrypts", func() bool {
			_, reached := with(url.Values{"sslmode": {"require"}}).find(diagnosis.OK, "connection", "")
			return reached
		})
		found := with(url.Values{"sslmode": {"require"}})
		if found.want(t, diagnosis.Warning, "tls", "sslmode=verify-full"); len(found.bad()) != 1 {
			t.Errorf("%v", found.bad())
		}
		found = with(url.Values{"sslmode": {"verify-full"}, "sslrootcert": {cert}})
		if found.want(t, diagnosis.OK, "tls", "TLS 1.3"); len(found.bad()) > 0 {
			t.Errorf("%v", found.bad())
		}
		with(url.Values{"sslmode": {"disable"}}).want(t, diagnosis.Warning, "tls", "sslmode=verify-full")
		found = with(url.Values{"sslmode": {"verify-full"}})
		found.want(t, diagnosis.Problem, "connection", "sslrootcert=ca.pem")
	}
}

// encrypt gives a server a certificate for an address, and returns its path.
func encrypt(t *testing.T, w *ward, host string) (path string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(host)}, IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := one[string](t, dial(t, w.admin), "SHOW data_directory")
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	for name, block := range map[string]*pem.Block{"server.crt": {Type: "CERTIFICATE", Bytes: cert}, "server.key": {Type: "PRIVATE KEY", Bytes: secret}} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	w.sql("ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();")
	path = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
