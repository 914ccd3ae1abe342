package s3

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// noETag is one that no object has.
const noETag = `"00000000000000000000000000000000"`

// Examine looks at a bucket and says what it finds; the caller adds the Subject. It
// reads the record of the destination, and asks to write an object on a condition that
// never holds. Nothing is written, unless the store takes no notice of conditions: then
// it is an empty object .onewrite/doctor, and the finding says so.
func Examine(ctx context.Context, c Config) []diagnosis.Finding {
	e := &examiner{List: diagnosis.List{Prefix: "s3: "}}
	s, err := New(ctx, c)
	if err != nil {
		e.Failed("settings", err)
		return e.Found
	}
	defer func() { _ = s.Close() }()
	if e.record(ctx, s) && e.writes(ctx, s) {
		e.lifecycle(ctx, s)
	}
	return e.Found
}

type examiner struct{ diagnosis.List }

// record reads what says where the destination is.
func (e *examiner) record(ctx context.Context, s *Sink) bool {
	text, _, err := s.get(ctx, s.recordKey())
	if err != nil && !errors.Is(err, errNoKey) {
		e.Failed("bucket", err)
		return false
	}
	e.Add(diagnosis.OK, "bucket", "", "%s can be read", s.bucket)
	var r record
	switch {
	case err != nil:
		e.Add(diagnosis.OK, "record", "", "nothing was written yet by the name %s", s.destination)
	case json.Unmarshal(text, &r) != nil || r.Version != 1:
		e.Add(diagnosis.Problem, "record", "give the destination another name", "%s cannot be read: was it written by a newer onewrite, or by another program?", s.recordKey())
		return false
	default:
		e.Add(diagnosis.OK, "record", "", "%d commits, by %d writers", r.Commit, r.Epoch)
	}
	return true
}

// writes asks whether objects may be written, and whether conditions are heeded.
func (e *examiner) writes(ctx context.Context, s *Sink) bool {
	key := s.root + ".onewrite/doctor"
	_, err := s.put(ctx, key, jsonType, nil, noETag)
	switch {
	case errors.Is(err, errPrecondition), errors.Is(err, errNoKey):
		e.Add(diagnosis.OK, "conditions", "", "objects may be written, and conditions are heeded")
		return true
	case err != nil:
		e.Failed("write", err)
	default:
		e.Add(diagnosis.Problem, "conditions", "use a store that has conditional writes (If-None-Match, If-Match), in its newest version", "the store takes no notice of conditions, so two copies could overwrite each other; it has made the empty object %s, which can be removed", key)
	}
	return false
}

// lifecycle looks for rules that would remove the record. That they may not be looked
// at is no finding: to deliver, nobody has to.
func (e *examiner) lifecycle(ctx context.Context, s *Sink) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	out, err := s.client.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: &s.bucket})
	if err != nil {
		return
	}
	for _, r := range out.Rules {
		//lint:ignore SA1019 old rules have it here
		prefix := aws.ToString(r.Prefix) //nolint:staticcheck // likewise
		if r.Filter != nil {
			prefix = aws.ToString(r.Filter.Prefix)
			if r.Filter.Tag != nil || r.Filter.And != nil && len(r.Filter.And.Tags) > 0 || r.Filter.ObjectSizeGreaterThan != nil {
				continue // the record has no tags, and is small
			}
			if r.Filter.And != nil {
				prefix = aws.ToString(r.Filter.And.Prefix)
			}
		}
		if r.Status == types.ExpirationStatusEnabled && r.Expiration != nil && (strings.HasPrefix(s.recordKey(), prefix) || strings.HasPrefix(prefix, s.root+".onewrite/"+s.destination)) {
			e.Add(diagnosis.Warning, "lifecycle", "give the rule a prefix that "+s.root+".onewrite/ does not begin with", "the rule %q of the bucket removes old objects that begin with %q: the record and the lists of commits among them", aws.ToString(r.ID), prefix)
			return
		}
	}
	e.Add(diagnosis.OK, "lifecycle", "", "no rule removes the record")
}
