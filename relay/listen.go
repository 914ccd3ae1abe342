package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// face is the HTTP server of a running relay.
type face struct{ server *http.Server }

// listen serves the API on the configured address; an empty one serves none. A
// server that breaks ends the relay.
func (r *Relay) listen(fail context.CancelCauseFunc) (*face, error) {
	if r.cfg.Listen == "" || r.cfg.Listen == "off" {
		return &face{}, nil
	}
	l, err := net.Listen("tcp", r.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; another program has the port: choose another with listen: or --listen", r.cfg.Listen, err)
	}
	s := &http.Server{
		Handler:           r.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		WriteTimeout:      60 * time.Second,
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return r.ctx },
	}
	r.log.Info("listening", "addr", l.Addr().String())
	if r.opts.Listening != nil {
		r.opts.Listening(l.Addr().String())
	}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fail(fmt.Errorf("serve %s: %w", r.cfg.Listen, err))
		}
	}()
	return &face{s}, nil
}

func (f *face) close() {
	if f.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if f.server.Shutdown(ctx) != nil {
		f.server.Close()
	}
}
