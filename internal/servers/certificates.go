package servers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"time"
)

// certificates makes an authority, a certificate of the broker and one of a client,
// and returns the broker's lines about them.
func (k *KafkaServer) certificates() (string, error) {
	ca, caKey, caPEM, _, err := certificate("onewrite test authority", nil, nil)
	if err != nil {
		return "", err
	}
	_, _, serverPEM, serverKey, err := certificate("localhost", ca, caKey)
	if err != nil {
		return "", err
	}
	_, _, clientPEM, clientKey, err := certificate("client", ca, caKey)
	if err != nil {
		return "", err
	}
	k.CA, k.ClientCert, k.ClientKey = k.proc.path("ca.pem"), k.proc.path("client.pem"), k.proc.path("client.key")
	for path, text := range map[string]string{k.CA: caPEM, k.ClientCert: clientPEM, k.ClientKey: clientKey} {
		if err := k.proc.write(filepath.Base(path), text); err != nil {
			return "", fmt.Errorf("servers: %w", err)
		}
	}
	property := func(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", `\n`) }
	return fmt.Sprintf("ssl.keystore.type=PEM\nssl.keystore.certificate.chain=%s\nssl.keystore.key=%s\nssl.truststore.type=PEM\nssl.truststore.certificates=%s\n",
		property(serverPEM), property(serverKey), property(caPEM)), nil
}

// certificate makes one for 127.0.0.1, signed by an authority, or one that is an
// authority if none is given.
func certificate(name string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (cert *x509.Certificate, key *ecdsa.PrivateKey, certPEM, keyPEM string, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, "", "", err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, nil, "", "", err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := ca, caKey
	if ca == nil {
		t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer)
	keyDER, err2 := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err, err2); err != nil {
		return nil, nil, "", "", err
	}
	cert, err = x509.ParseCertificate(der)
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return cert, key, block("CERTIFICATE", der), block("PRIVATE KEY", keyDER), err
}
