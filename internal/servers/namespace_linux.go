package servers

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// namespaceVariable names the test that runs in a mount namespace of its own.
const namespaceVariable = "ONEWRITE_TEST_NAMESPACE"

// WithDisk runs a test in a mount namespace of its own, in a process of its own, so
// that it can have a small disk: run gets a function that mounts one of a size as
// tmpfs takes it, "16m", on a folder. Where namespaces or mounts are not allowed, the
// test is skipped.
func WithDisk(t *testing.T, run func(mount func(dir, size string))) {
	t.Helper()
	const refused = "no mount:"
	if os.Getenv(namespaceVariable) == t.Name() {
		run(func(dir, size string) {
			t.Helper()
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
				t.Skip(refused, err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		})
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), namespaceVariable+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || strings.Contains(string(out), refused) {
		t.Skipf("no namespaces here: %v %s", err, out)
	}
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// AsNobody calls f, on one thread, as a user without any right where this process is
// root, so that what may not be read shows; else as this user. f may not end the test.
func AsNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			const nobody = 65534
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
				t.Error(errno)
				return
			}
		}
		f()
	}()
	<-done
}
