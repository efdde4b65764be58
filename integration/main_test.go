// Package integration runs the real thing end to end: a real caddy process,
// real upstreams, real peers.
package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flatauth/caddy-flatauth/internal/testnet"
	"github.com/flatauth/caddy-flatauth/protocol"
)

// caddyPath is the binary under test, built once.
var caddyPath string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "flatauth-integration-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		caddyPath = filepath.Join(dir, "caddy")
		build := exec.Command("go", "build", "-o", caddyPath, "../cmd/caddy")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "building caddy:", err)
			return 1
		}
		// Whatever Caddy keeps, it keeps here.
		os.Setenv("XDG_DATA_HOME", filepath.Join(dir, "data"))
		os.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
		return m.Run()
	}())
}

// need skips the test if a program is not installed, unless that must not be.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is not installed", program)
			}
			t.Skipf("%s is not installed", program)
		}
	}
}

// patience is how long anything may take that ought to be quick. No test
// asserts that something takes less; it bounds how long a failure hangs.
const patience = 60 * time.Second

// eventually waits until the condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain waited for ", what)
		}
	}
}

// A process is a program that runs until the test ends.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	mu   sync.Mutex
	log  bytes.Buffer
	done chan struct{}
}

func start(t testing.TB, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout = p.cmd.Stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		r := bufio.NewReader(output)
		for {
			line, err := r.ReadBytes('\n')
			p.mu.Lock()
			p.log.Write(line)
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.done
		p.cmd.Wait()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, tail(p.logged(), 8000))
		}
	})
	return p
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (p *process) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// entries are the log's entries with the message.
func (p *process) entries(msg string) (found []map[string]any) {
	for line := range strings.Lines(p.logged()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == msg {
			found = append(found, entry)
		}
	}
	return found
}

// status is a number of /proc/PID/status in KiB, such as VmRSS or VmHWM.
func (p *process) status(key string) int {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal("the process is gone: ", err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				p.t.Fatal(err)
			}
			return n
		}
	}
	p.t.Fatal("no ", key)
	return 0
}

// A server is a caddy process with a configuration.
type server struct {
	*process
	admin string
}

// startCaddy starts caddy with a Caddyfile, whose first line may begin with {
// for global options; the admin address is put in.
func startCaddy(t testing.TB, caddyfile string) *server {
	t.Helper()
	admin := testnet.FreeAddr()
	path := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(path, []byte(withAdmin(caddyfile, admin)), 0o600); err != nil {
		t.Fatal(err)
	}
	return startCaddyConfig(t, admin, path, "caddyfile")
}

func withAdmin(caddyfile, admin string) string {
	return strings.Replace(caddyfile, "{\n", "{\n\tadmin "+admin+"\n", 1)
}

func startCaddyConfig(t testing.TB, admin, path, adapter string) *server {
	t.Helper()
	args := []string{"run", "--config", path}
	if adapter != "" {
		args = append(args, "--adapter", adapter)
	}
	s := &server{start(t, caddyPath, args...), admin}
	eventually(t, "caddy", func() bool {
		select {
		case <-s.done:
			t.Fatalf("caddy did not start:\n%s", s.logged())
		default:
		}
		return strings.Contains(s.logged(), "serving initial configuration")
	})
	return s
}

// load gives the server another configuration.
func (s *server) load(contentType, config string) error {
	// A load replaces the admin server too: its connections are not for reuse.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+s.admin+"/load", contentType, strings.NewReader(config))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

// flatCaddyfile is the configuration of one flat service.
func flatCaddyfile(listen, accounts, upstream, options string) string {
	return fmt.Sprintf(`{
	layer4 {
		%s {
			@flat flatauth
			route @flat {
				flatauth {
					store directory %s
					%s
				}
				proxy %s
			}
		}
	}
}
`, listen, accounts, options, upstream)
}

// run runs a command to its end.
func run(t testing.TB, stdin io.Reader, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// mustRun is run for a command that has to succeed.
func mustRun(t testing.TB, stdin io.Reader, name string, args ...string) string {
	t.Helper()
	stdout, stderr, code := run(t, stdin, name, args...)
	if code != 0 {
		t.Fatalf("%s %q: exit code %d\n%s%s", name, args, code, stdout, stderr)
	}
	return stdout
}

func flatauth(t testing.TB, args ...string) string {
	t.Helper()
	return mustRun(t, nil, caddyPath, append([]string{"flatauth"}, args...)...)
}

const passphrase = "correct horse battery staple"

// accounts is a store with the person alice and the machine sensor.
type accounts struct {
	dir            string
	passphraseFile string
	identity       string // of sensor
}

func newAccounts(t testing.TB) accounts {
	t.Helper()
	tmp := t.TempDir()
	a := accounts{filepath.Join(tmp, "accounts"), filepath.Join(tmp, "passphrase"), filepath.Join(tmp, "sensor.pem")}
	if err := os.WriteFile(a.passphraseFile, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.addPerson(t, "alice")
	flatauth(t, "account", "add", "sensor", "--store", a.dir, "--type", "certificate", "--out", a.identity)
	return a
}

func (a accounts) addPerson(t testing.TB, name string) {
	t.Helper()
	flatauth(t, "account", "add", name, "--store", a.dir, "--passphrase-file", a.passphraseFile)
}

// person and machine are the arguments of connect.
func (a accounts) person(name string) []string {
	return []string{"--user", name, "--passphrase-file", a.passphraseFile}
}

func (a accounts) machine() []string { return []string{"--identity", a.identity} }

// connect runs "caddy flatauth connect".
func connect(t testing.TB, stdin io.Reader, addr string, who []string) (stdout, stderr string, code int) {
	t.Helper()
	return run(t, stdin, caddyPath, append([]string{"flatauth", "connect", addr}, who...)...)
}

// An upstream is a TCP service of the test's own.
type upstream struct {
	net.Listener
	mu       sync.Mutex
	accepted int
}

// newUpstream serves each connection with a call of handle.
func newUpstream(t testing.TB, handle func(net.Conn)) *upstream {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{Listener: ln}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			u.accepted++
			u.mu.Unlock()
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
	return u
}

func (u *upstream) addr() string { return u.Addr().String() }

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.accepted
}

// echo sends back what it is sent.
func echo(conn net.Conn) {
	io.Copy(conn, conn)
	conn.(*net.TCPConn).CloseWrite()
}

// machineConfig logs in as sensor.
func (a accounts) machineConfig(t testing.TB) *protocol.ClientConfig {
	t.Helper()
	return identityConfig(t, a.identity)
}
