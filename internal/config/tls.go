package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Build reads the files that t names and returns what clients take. A nil t
// gives nil: the system's authorities. The error names the file; nothing of its
// content is shown.
func (t *TLS) Build() (*tls.Config, error) {
	if t == nil {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.Insecure}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("ca %s cannot be read: %s", t.CA, plainError(err))
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca %s holds no certificate", t.CA)
		}
	}
	switch {
	case t.Cert == "" && t.Key == "":
		return out, nil
	case t.Cert == "" || t.Key == "":
		return nil, errors.New("cert and key go together")
	}
	for _, file := range []struct{ key, path string }{{"cert", t.Cert}, {"key", t.Key}} {
		if _, err := os.Stat(file.path); err != nil {
			return nil, fmt.Errorf("%s %s cannot be read: %s", file.key, file.path, plainError(err))
		}
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("cert %s and key %s are no pair", t.Cert, t.Key)
	}
	out.Certificates = []tls.Certificate{pair}
	return out, nil
}
