package servers_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/internal/servers"
)

// Servers of a cluster that are killed in turn keep what they acknowledged.
func TestNATS(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			n, err := servers.LaunchNATS(nodes)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := n.Shutdown(); err != nil {
					t.Error(err)
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			nc, err := natsgo.Connect(n.URL(), natsgo.ReconnectWait(50*time.Millisecond), natsgo.MaxReconnects(-1))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			s, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: nodes})
			if err != nil {
				t.Fatal(err)
			}
			stored := uint64(0)
			for i := range nodes {
				old := n.Pid(i)
				if err := n.Kill(i); err != nil {
					t.Fatal(err)
				}
				if nodes > 1 {
					stored += publish(ctx, t, js)
				}
				if err := n.Start(i); err != nil {
					t.Fatal(err)
				}
				if err := n.Healthy(ctx); err != nil {
					t.Fatal(err)
				}
				if now := n.Pid(i); now == old || now == 0 {
					t.Errorf("pid %d is %d", old, now)
				}
				stored += publish(ctx, t, js)
			}
			info, err := s.Info(ctx)
			if err != nil || info.State.Msgs < stored {
				t.Errorf("%v, %+v; %d were acknowledged", err, info, stored)
			}
		})
	}
}

// publish publishes until one message is acknowledged.
func publish(ctx context.Context, t *testing.T, js jetstream.JetStream) uint64 {
	t.Helper()
	for {
		try, cancel := context.WithTimeout(ctx, time.Second)
		_, err := js.Publish(try, "s", []byte("x"))
		cancel()
		if err == nil {
			return 1
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}
