package redis_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestTLS: rediss is encrypted, and the certificate is looked at.
func TestTLS(t *testing.T) {
	srv := servers.NewRedis(t)
	c := plain(t, srv)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	args := []any{"CONFIG", "SET"}
	for name, block := range map[string]*pem.Block{"tls-cert-file": {Type: "CERTIFICATE", Bytes: der}, "tls-ca-cert-file": {Type: "CERTIFICATE", Bytes: der}, "tls-key-file": {Type: "PRIVATE" + " KEY", Bytes: private}} {
		path := filepath.Join(srv.Data(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o644); err != nil { // for the server's user
			t.Fatal(err)
		}
		args = append(args, name, path)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	do(t, c, append(args, "tls-auth-clients", "no", "tls-port", fmt.Sprint(port))...)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	conf := redis.Config{URL: fmt.Sprintf("rediss://127.0.0.1:%d", port), Password: srv.Password(), Destination: "d", Stream: "s", TLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	s := openPlaced(t, conf)
	place(t, s)
	placed, write := both(t, s, "t")
	wants(t, srv, placed, "none")
	wants(t, srv, write, "none")
	finds(t, examined(t, conf, srv.Password()), diagnosis.OK, "tls", "good")
	stranger := conf
	stranger.TLS = nil
	_, err = redis.Open(t.Context(), stranger)
	wants(t, srv, err, "outage", "unknown authority")
	finds(t, examined(t, stranger, srv.Password()), diagnosis.Problem, "connection", "unknown authority")
	named := conf
	named.TLS = &tls.Config{RootCAs: pool, ServerName: "redis.example", MinVersion: tls.VersionTLS12}
	_, err = redis.Open(t.Context(), named)
	wants(t, srv, err, "outage", "redis.example")
	clear := conf
	clear.URL = "redis" + conf.URL[len("rediss"):]
	if _, err = redis.Open(t.Context(), clear); err == nil {
		t.Error("clear text to a port of TLS")
	}
}
