package config

import (
	"net/url"
	"regexp"
	"strings"
)

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	s3Field    = regexp.MustCompile(`\{(source|topic|type|date|hour)\}`)
	keyText    = regexp.MustCompile(`^[A-Za-z0-9/!_.*'()=-]*$`)
)

// compression refuses what is not for files and objects.
func (c *checker) compression(path string, d Destination) {
	at := path + ".compression"
	if d.Type == File && d.Format == "parquet" {
		c.tables(path, d)
		return
	}
	if d.Format != "parquet" && (d.Compression == "snappy" || d.Compression == "lz4") {
		c.bad(at, c.show(at, d.Compression)+" is not a compression of files", "write none, gzip or zstd")
	}
	if d.Type == File && d.Compression != "" && d.Compression != "none" && d.Rotate == 0 {
		c.warn(at, "does nothing: files are compressed when they are rotated", "write rotate: 100MB too")
	}
}

// tables refuses what a file cannot become Parquet with.
func (c *checker) tables(path string, d Destination) {
	at := path + ".format"
	switch {
	case d.Path == "-":
		c.bad(at, "is for files, and standard output is none", "write path: events.jsonl, or remove format")
	case d.Rotate == 0 && !c.broken(path+".rotate"):
		c.bad(at, "needs rotate: a file becomes Parquet when it is rotated", "write rotate: 100MB too")
	}
}

func (c *checker) s3(path string, d Destination) {
	if at := path + ".bucket"; d.Bucket != "" && !c.broken(at) && !bucketName.MatchString(d.Bucket) {
		c.bad(at, c.show(at, d.Bucket)+" is no name of a bucket", "use 3 to 63 lower-case letters, digits, - and .")
	}
	if at := path + ".prefix"; !c.broken(at) {
		rest := s3Field.ReplaceAllString(d.Prefix, "")
		switch {
		case strings.ContainsAny(rest, "{}"):
			c.bad(at, c.show(at, d.Prefix)+" has a placeholder that is none", "write those there are: {source}, {topic}, {type}, {date}, {hour}")
		case !keyText.MatchString(rest) || strings.HasPrefix(d.Prefix, "/") || strings.Contains(rest, "..") || len(d.Prefix) > 200:
			c.bad(at, c.show(at, d.Prefix)+" is no begin of objects' names", "write words of ASCII with / between, and none at the begin: shop/{topic}/{date}/")
		}
	}
	c.compression(path, d)
	if at := path + ".endpoint"; d.Endpoint != "" && !c.broken(at) {
		u, err := url.Parse(d.Endpoint)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Port() != "" && !goodPort(u.Port(), 1):
			c.bad(at, "is not an http or https URL without user and query", "write endpoint: https://minio.example:9000")
		case u.Scheme == "http" && d.TLS != nil:
			c.bad(path+".tls", "does not go with an http endpoint", "write https, or remove tls")
		case u.Scheme == "http" && !loopback(u.Hostname()):
			c.warn(at, "events go to another machine in clear text", "write https")
		}
	}
	if d.AccessKey.Empty() != d.SecretKey.Empty() && !c.broken(path+".access_key") && !c.broken(path+".secret_key") {
		c.bad(path+".access_key", "goes with secret_key, and one of them is missing", "write both, or neither: then AWS's own chain is asked")
	}
}
