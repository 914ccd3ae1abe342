package webhook

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
)

// minPart is the least length of a part of the URL that may be a secret.
const minPart = 6

// publicParts are parts of URLs that tell nothing, and that an answer may well speak of.
var publicParts = []string{
	"callback", "callbacks", "cloudevents", "consumer", "customer", "customers", "deliver", "endpoint", "events", "handler", "inbound", "ingest", "integrations",
	"message", "messages", "notifications", "notify", "onewrite", "orders", "outbox", "payments", "public", "receive", "receiver", "services", "topics",
	"webhook", "webhooks",
}

// secretTexts are the texts that no error may repeat: what the configuration holds, and
// the forms of it that a receiver has in hand.
func secretTexts(secrets []string, keys [][]byte, headers []string, u *url.URL) []string {
	list := slices.Concat(secrets, headers)
	for i, key := range keys {
		list = append(list, strings.TrimPrefix(secrets[i], "whsec_"), string(key), hex.EncodeToString(key), strings.ToUpper(hex.EncodeToString(key)),
			base64.RawURLEncoding.EncodeToString(key))
	}
	for _, value := range headers {
		scheme, rest, two := strings.Cut(value, " ")
		if !two {
			continue
		}
		list = append(list, strings.Fields(rest)...)
		pair, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
		if err != nil || !strings.EqualFold(scheme, "Basic") {
			continue
		}
		_, password, _ := strings.Cut(string(pair), ":")
		list = append(list, string(pair), password)
	}
	return append(list, urlTexts(u)...)
}

// urlTexts are the parts of a URL that may be secrets: its path and query as a whole,
// the segments of the path, and the values of the query, as written and decoded.
func urlTexts(u *url.URL) []string {
	parts := strings.Split(u.EscapedPath(), "/")
	for _, pair := range strings.FieldsFunc(u.RawQuery, func(r rune) bool { return r == '&' || r == ';' }) {
		if name, value, _ := strings.Cut(pair, "="); value != "" {
			parts = append(parts, value)
		} else { // a secret may stand by itself
			parts = append(parts, name)
		}
	}
	list := []string{u.RequestURI()}
	for _, part := range parts {
		decoded, err := url.QueryUnescape(part)
		if err != nil {
			decoded = part
		}
		for _, text := range []string{part, decoded} {
			if len(text) >= minPart && !slices.Contains(publicParts, strings.ToLower(text)) {
				list = append(list, text)
			}
		}
	}
	return list
}
