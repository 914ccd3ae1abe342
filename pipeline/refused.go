package pipeline

import (
	"slices"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
)

// The answer to a parked event that was tried again is stored with the cursor, not with
// the entry: what a bus holds of an entry never changes, and the cursor is stored anyway.
// It is stored often, so that both are bounded.
const (
	maxRefused = 64  // the oldest goes first
	maxAnswer  = 256 // bytes of each
)

// noteRefusal keeps why a parked event was refused again. The list is made anew, as a
// cursor that is being stored has the old one.
func (r *deliverer) noteRefusal(e *entry, cause error) {
	reason := cause.Error()
	if len(reason) > maxAnswer {
		reason = strings.ToValidUTF8(reason[:maxAnswer], "") + "…"
	}
	now := onewrite.Refusal{Ref: e.ref, Reason: reason, Attempts: max(1, e.attempts), At: time.Now().UTC()}
	list := make([]onewrite.Refusal, 0, len(r.cursor.Refused)+1)
	for _, f := range r.cursor.Refused {
		if f.Ref == e.ref {
			now.Attempts += f.Attempts
		} else {
			list = append(list, f)
		}
	}
	list = append(list, now)
	r.cursor.Refused, r.dirty = list[max(0, len(list)-maxRefused):], true
}

// pruneRefusals forgets the answers to events that are not parked any more.
func (r *deliverer) pruneRefusals() {
	var list []onewrite.Refusal
	for _, f := range r.cursor.Refused {
		if _, parked := r.lot.places[f.Ref]; parked {
			list = append(list, f)
		}
	}
	r.cursor.Refused = list
}

// Answer gives parked events the answers to their newest tries.
func Answer(list []onewrite.Parked, refused []onewrite.Refusal) {
	for i := range list {
		p := &list[i]
		at := slices.IndexFunc(refused, func(f onewrite.Refusal) bool { return f.Ref == p.Ref })
		if at >= 0 {
			f := refused[at]
			p.Reason, p.Attempts, p.RefusedAt = f.Reason, p.Attempts+f.Attempts, f.At
		}
	}
}

const behind = "waits behind "

// explain makes the reasons those of now: the answers to the newest tries, and behind which
// event one waits, as the one that it was parked behind may be gone.
func (r *deliverer) explain(list []onewrite.Parked) {
	Answer(list, r.cursor.Refused)
	first := map[onewrite.Lane]uint64{}
	for ref, at := range r.lot.places {
		id := onewrite.Lane{Log: at.log, Key: r.lot.keys[ref]}
		if was, there := first[id]; !there || ref < was {
			first[id] = ref
		}
	}
	for i := range list {
		p := &list[i]
		if !p.RefusedAt.IsZero() || !strings.HasPrefix(p.Reason, behind) {
			continue
		}
		switch ref := first[onewrite.Lane{Log: p.Message.Log, Key: p.Message.Key}]; ref {
		case p.Ref:
			p.Reason = "waited behind an event that is not parked any more, and was not refused itself: onewrite parked retry"
		default:
			p.Reason = behind + r.lot.at[r.lot.places[ref]]
		}
	}
}
