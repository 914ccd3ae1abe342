package pipeline_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
)

var errSilence = errors.New("no answer in time")

// unclear runs 200 events of keys of their own, 20 in a write, against a fault, and
// returns how many writes there were.
func unclear(t *testing.T, fault func(write int, msgs []onewrite.Message) (bool, int, error)) (k *keeper, writes int, parked uint64) {
	t.Helper()
	k = &keeper{}
	k.fault = func(msgs []onewrite.Message) (bool, int, error) {
		writes++
		return fault(writes, msgs)
	}
	w := keeping(k)
	for i := range 200 {
		w.source.commit(event(i, fmt.Sprint("k", i)))
	}
	w.start()
	time.Sleep(30 * time.Minute)
	parked = w.d.Status().Parked
	w.stop()
	return k, writes, parked
}

// What was in a write without an answer travels in writes again, not each event alone:
// a transaction for each takes minutes where a batch takes a moment.
func TestPlacedUnclearStaysTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, writes, parked := unclear(t, func(write int, _ []onewrite.Message) (bool, int, error) {
			if write == 1 {
				return false, 0, errSilence
			}
			return true, 0, nil
		})
		if n := len(k.all(t)); n != 200 || parked != 0 {
			t.Errorf("%d events, %d parked", n, parked)
		}
		if writes > 20 {
			t.Errorf("%d writes for 200 events in batches of 20", writes)
		}
	})
}

// An event that ends the connection whenever it is sent holds up no other key. It is not
// parked as long as nothing else shows that the destination is up.
func TestPlacedUnclearPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, writes, _ := unclear(t, func(_ int, msgs []onewrite.Message) (bool, int, error) {
			for i := range msgs {
				if msgs[i].ID == "e0017" {
					return false, 0, errSilence
				}
			}
			return true, 0, nil
		})
		if n := len(k.all(t)); n != 199 || writes > 150 {
			t.Errorf("%d events of 199 in %d writes", n, writes)
		}
	})
}
