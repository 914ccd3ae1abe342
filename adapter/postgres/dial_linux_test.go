package postgres

import (
	"net"
	"syscall"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

func TestDeadNetworkIsNoticed(t *testing.T) {
	s := open(t, newOutbox(t, servers.Postgres(t, 15), MigrateOptions{}), "")
	raw, err := s.conn.PgConn().Conn().(*wire).Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	get := func(option int) (v int) {
		if err := raw.Control(func(fd uintptr) { v, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option) }); err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := get(tcpUserTimeout); v != 15_000 {
		t.Errorf("what was sent may stay unacknowledged for %d ms", v)
	}
	if idle, every, count := get(syscall.TCP_KEEPIDLE), get(syscall.TCP_KEEPINTVL), get(syscall.TCP_KEEPCNT); idle+every*count > 15 {
		t.Errorf("a silent network is noticed after %d s", idle+every*count)
	}
}
