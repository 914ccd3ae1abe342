package inbox

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// signingKey returns the key of a secret, as the sender makes it.
func signingKey(secret string) ([]byte, error) {
	if secret == "" {
		return nil, errors.New("it is empty; is the environment variable set?")
	}
	coded, ok := strings.CutPrefix(secret, "whsec_")
	if !ok {
		return []byte(secret), nil
	}
	key, err := base64.StdEncoding.DecodeString(coded)
	if err != nil || len(key) == 0 {
		return nil, errors.New("what follows whsec_ is not base64")
	}
	return key, nil
}

// maxSignatures bounds the work that a stranger can ask for.
const maxSignatures = 16

// verify checks a request after Standard Webhooks: the signature of
// <webhook-id>.<webhook-timestamp>.<body> with one of the keys, and the time. An id
// with a dot could hold the timestamp of another request, whose body then begins with
// a number. The signature is looked at before the time, so that strangers learn nothing about the clock.
func (h *endpoint) verify(header http.Header, body []byte) error {
	id, stamp := header.Get("webhook-id"), header.Get("webhook-timestamp")
	given := strings.Fields(header.Get("webhook-signature"))
	if id == "" || stamp == "" || len(given) == 0 {
		return errors.New("the signature is missing: set the destination's secret")
	}
	if strings.Contains(id, ".") {
		return errors.New("webhook-id holds a dot, so that what is signed could be read in two ways: onewrite's ids have none")
	}
	if len(given) > maxSignatures {
		return fmt.Errorf("there are more than %d signatures", maxSignatures)
	}
	genuine := 0
	for _, key := range h.keys {
		mac := hmac.New(sha256.New, key)
		_, _ = io.WriteString(mac, id+"."+stamp+".") // a hash cannot fail
		_, _ = mac.Write(body)
		want := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		for _, got := range given {
			if hmac.Equal([]byte(got), want) {
				genuine++
			}
		}
	}
	if genuine == 0 {
		return errors.New("the signature is wrong: give both sides the same secret")
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return errors.New("webhook-timestamp is no number of seconds")
	}
	if off := h.now().Sub(time.Unix(seconds, 0)); off > h.tolerance || off < -h.tolerance {
		return fmt.Errorf("the timestamp is %v off, more than %v: set the clocks", off.Abs().Round(time.Second), h.tolerance)
	}
	return nil
}
