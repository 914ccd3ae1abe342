package servers

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Runtime runs the programs of another language, with that language's
// PostgreSQL driver at hand.
type Runtime struct {
	args []string // the file of the program follows
	env  []string
}

// Command returns the command that runs a program of one source file.
func (r Runtime) Command(file string, args ...string) *exec.Cmd {
	line := append(append([]string{}, r.args...), file)
	line = append(line, args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(), r.env...)
	return cmd
}

// Language returns the runtime of "python", "node" or "java". A language or a
// driver that is not installed ends the test as a missing server does.
func Language(tb testing.TB, name string) Runtime {
	tb.Helper()
	find := map[string]func() (Runtime, error){"python": findPython, "node": findNode, "java": findJava}[name]
	if find == nil {
		tb.Fatalf("servers: there is no language %q", name)
	}
	r, err := find()
	if err != nil {
		missing(tb, "%s with its PostgreSQL driver is %v: %v; %s", name, errMissing, err, installHint)
	}
	return r
}

// Python returns the interpreter that has a module, "pika" for instance. A module that
// is not installed ends the test as a missing server does.
func Python(tb testing.TB, module string) string {
	tb.Helper()
	path, err := pythonWith(module)
	if err != nil {
		missing(tb, "the Python module %s is %v: %v; %s", module, errMissing, err, installHint)
	}
	return path
}

// DuckDB returns Python with duckdb, which reads Parquet. What is not installed ends the
// test as a missing server does.
func DuckDB(tb testing.TB) Runtime {
	tb.Helper()
	return cachedModule(tb, "duckdb", "duckdb")
}

// cachedModule is Python with modules that are in a folder of the cache, not in the system.
func cachedModule(tb testing.TB, folder, modules string) Runtime {
	tb.Helper()
	path := filepath.Join(cacheDir(), folder)
	if more := os.Getenv("PYTHONPATH"); more != "" {
		path += string(filepath.ListSeparator) + more
	}
	r := Runtime{args: []string{"python3"}, env: []string{"PYTHONPATH=" + path}}
	probe := exec.Command("python3", "-c", "import "+modules)
	probe.Env = append(os.Environ(), r.env...)
	if _, err := output(probe); err != nil {
		missing(tb, "%s is %v: %v; %s", folder, errMissing, err, installHint)
	}
	return r
}

// findPython asks each interpreter for the driver: the python3 of PATH need not
// be the system's, which has the package.
func findPython() (Runtime, error) {
	path, err := pythonWith("psycopg")
	if err != nil {
		return Runtime{}, err
	}
	return Runtime{args: []string{path}}, nil
}

func pythonWith(module string) (string, error) {
	var errs []error
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		// What PATH names may be a script that looks for the interpreter.
		out, err := output(exec.Command(python, "-c", "import "+module+", sys; print(sys.executable)"))
		if err == nil {
			return string(out), nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

func findNode() (Runtime, error) {
	path := filepath.Join(cacheDir(), "node-pg", "node_modules")
	if more := os.Getenv("NODE_PATH"); more != "" {
		path += string(filepath.ListSeparator) + more
	}
	r := Runtime{args: []string{"node"}, env: []string{"NODE_PATH=" + path}}
	const ask = "try { require('pg') } catch (e) { console.error(e.message.split('\\n')[0]); process.exit(1) }"
	probe := exec.Command("node", "-e", ask)
	probe.Env = append(os.Environ(), r.env...)
	_, err := output(probe)
	return r, err
}

// findJava needs the compiler, which runs a source file. The two switches halve
// what a short run costs.
func findJava() (Runtime, error) {
	if _, err := output(exec.Command("javac", "-version")); err != nil {
		return Runtime{}, err
	}
	for _, jar := range []string{filepath.Join(cacheDir(), "postgresql.jar"), "/usr/share/java/postgresql.jar"} {
		if isProgram(jar) {
			return Runtime{args: []string{"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", jar}}, nil
		}
	}
	return Runtime{}, errors.New("there is no postgresql.jar")
}

// output runs a program and returns what it says; the error holds the last line
// of what it complains about.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		said := bytes.TrimSpace(stderr.Bytes())
		return nil, fmt.Errorf("%s: %w %s", cmd.Path, err, said[bytes.LastIndexByte(said, '\n')+1:])
	}
	return bytes.TrimSpace(out), nil
}
