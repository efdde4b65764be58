package integration

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddytest"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"

	_ "github.com/flatauth/caddy-flatauth"
	"github.com/flatauth/caddy-flatauth/internal/testnet"
)

// What each Caddyfile becomes, as caddy-l4 tests it.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("caddyfile_adapt/*.caddytest")
	if err != nil || len(files) == 0 {
		t.Fatal("no fixtures: ", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		caddyfile, want, _ := strings.Cut(string(data), "----------\n")
		t.Run(filepath.Base(file), func(t *testing.T) {
			caddytest.AssertAdapt(t, caddyfile, "caddyfile", strings.TrimSpace(want))
		})
	}
}

// Mistakes in a Caddyfile are refused in words that name them.
func TestAdaptErrors(t *testing.T) {
	for options, want := range map[string]string{
		"stoer directory x":                    "unrecognized option 'stoer'",
		"store directory x\nstore directory y": "duplicate option 'store'",
		"store nosuch":                         "flatauth.stores.nosuch",
		"store":                                "argument",
		"max_packet many":                      "not a size: 'many'",
		"max_packet 1KiB 2KiB":                 "argument",
		"handshake_timeout soon":               "not a duration: 'soon'",
		"max_handshakes x":                     "not a number",
		"allow":                                "argument",
		"allow {\nzone x\n}":                   "unrecognized option 'zone'",
		"max_packet 1KiB {\nx\n}":              "does not take a block",
		"store directory x {\npath y\n}":       "given twice",
		"store directory x y":                  "argument",
	} {
		caddyfile := fmt.Sprintf("{\nlayer4 {\n:7000 {\nroute {\nflatauth {\n%s\n}\n}\n}\n}\n}\n", options)
		path := filepath.Join(t.TempDir(), "Caddyfile")
		if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := run(t, nil, caddyPath, "adapt", "--config", path)
		if code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d, %s", options, code, stderr)
		}
	}
}

// The same service by Caddyfile, by JSON and by a live POST to /load.
func TestThreeWays(t *testing.T) {
	a := newAccounts(t)
	up := newUpstream(t, echo)
	login := func(addr string) {
		t.Helper()
		stdout, stderr, code := connect(t, strings.NewReader("hello"), addr, a.machine())
		if stdout != "hello" || code != 0 {
			t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
		}
	}
	addr := testnet.FreeAddr()
	caddyfile := flatCaddyfile(addr, a.dir, up.addr(), "max_packet 64KiB\nhandshake_timeout 10s")
	byCaddyfile := startCaddy(t, caddyfile)
	login(addr)

	config := func(addr, admin string) string {
		b, err := json.Marshal(map[string]any{
			"admin": map[string]any{"listen": admin},
			"apps": map[string]any{"layer4": map[string]any{"servers": map[string]any{"flat": map[string]any{
				"listen": []string{addr},
				"routes": []any{map[string]any{
					"match": []any{map[string]any{"flatauth": map[string]any{}}},
					"handle": []any{
						map[string]any{"handler": "flatauth", "store": map[string]any{"source": "directory", "path": a.dir}, "max_packet": 65536},
						map[string]any{"handler": "proxy", "upstreams": []any{map[string]any{"dial": []string{up.addr()}}}},
					},
				}},
			}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	addr, admin := testnet.FreeAddr(), testnet.FreeAddr()
	path := filepath.Join(t.TempDir(), "caddy.json")
	if err := os.WriteFile(path, []byte(config(addr, admin)), 0o600); err != nil {
		t.Fatal(err)
	}
	startCaddyConfig(t, admin, path, "")
	login(addr)

	addr = testnet.FreeAddr()
	if err := byCaddyfile.load("application/json", config(addr, byCaddyfile.admin)); err != nil {
		t.Fatal(err)
	}
	login(addr)
	addr = testnet.FreeAddr()
	if err := byCaddyfile.load("text/caddyfile", withAdmin(flatCaddyfile(addr, a.dir, up.addr(), ""), byCaddyfile.admin)); err != nil {
		t.Fatal(err)
	}
	login(addr)

	// A configuration that cannot work is refused, and the old one goes on.
	for options, want := range map[string]string{
		"max_packet 10":          "max_packet is 10 bytes",
		"suites quantum":         "no suite 'quantum'",
		"idle_timeout -1s":       "negative",
		"allow {\nzones \"\"\n}": "not a name",
	} {
		err := byCaddyfile.load("text/caddyfile", withAdmin(flatCaddyfile(addr, a.dir, up.addr(), options), byCaddyfile.admin))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", options, err)
		}
	}
	login(addr)
}

// The command "serve" does what a Caddyfile does.
func TestServe(t *testing.T) {
	a := newAccounts(t)
	up := newUpstream(t, echo)
	addr := testnet.FreeAddr()
	p := start(t, caddyPath, "flatauth", "serve", "--listen", addr, "--to", up.addr(), "--store", a.dir)
	eventually(t, "serve", func() bool { return strings.Contains(p.logged(), "flatauth is serving") })
	for _, who := range [][]string{a.machine(), a.person("alice")} {
		stdout, stderr, code := connect(t, strings.NewReader("hello"), addr, who)
		if stdout != "hello" || code != 0 {
			t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
		}
	}
}

// HTTP, TLS, SSH and the flat protocol share a port, and so do two flat
// services that are told apart by zone.
func TestOnePort(t *testing.T) {
	d := startSSHD(t)
	a := newAccounts(t)
	a.addPerson(t, "alice@ops")
	a.addPerson(t, "alice@dev")
	says := func(word string) *upstream {
		return newUpstream(t, func(conn net.Conn) { conn.Write([]byte(word)) })
	}
	ops, dev, machines := says("ops"), says("dev"), says("machines")
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "web") })}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go web.Serve(ln)
	t.Cleanup(func() { web.Close() })
	addr := testnet.FreeAddr()
	startCaddy(t, fmt.Sprintf(`{
	skip_install_trust
	layer4 {
		%[1]s {
			@http http
			@tls tls
			@ssh ssh
			@ops flatauth zone ops
			@dev flatauth username *@dev
			@machines flatauth type certificate
			route @http {
				proxy %[2]s
			}
			route @tls {
				tls
				proxy %[2]s
			}
			route @ssh {
				proxy %[3]s
			}
			route @ops {
				flatauth {
					store directory %[4]s
				}
				proxy %[5]s
			}
			route @dev {
				flatauth {
					store directory %[4]s
				}
				proxy %[6]s
			}
			route @machines {
				flatauth {
					store directory %[4]s
				}
				proxy %[7]s
			}
		}
	}
}
https://localhost:%[8]s {
	tls internal
}
`, addr, ln.Addr(), d.addr, a.dir, ops.addr(), dev.addr(), machines.addr(), port(testnet.FreeAddr())))

	for want, who := range map[string][]string{
		"ops": a.person("alice@ops"), "dev": a.person("alice@DEV"), "machines": a.machine(),
	} {
		if stdout, stderr, code := connect(t, strings.NewReader(""), addr, who); stdout != want || code != 0 {
			t.Errorf("%s: exit code %d, %q, %s", want, code, stdout, stderr)
		}
	}
	resp, err := http.Get("http://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(resp.Body); string(body) != "web" {
		t.Errorf("HTTP: %q", body)
	}
	resp.Body.Close()
	var conn *tls.Conn
	eventually(t, "the certificate of localhost", func() bool {
		conn, err = tls.Dial("tcp", addr, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true})
		return err == nil
	})
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	tlsResp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(tlsResp.Body); string(body) != "web" {
		t.Errorf("TLS: %q", body)
	}
	host, sshPort, _ := net.SplitHostPort(addr)
	if out := mustRun(t, nil, "ssh", "-F", d.config, "-p", sshPort, host, "echo ssh"); out != "ssh\n" {
		t.Errorf("SSH: %q", out)
	}
}

func port(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// A reload while sessions stream cuts none of them and loses no byte. Accounts
// that are added or disabled meanwhile count at once.
func TestReload(t *testing.T) {
	const sessions, reloads = 100, 5
	a := newAccounts(t)
	up := newUpstream(t, echo)
	addr := testnet.FreeAddr()
	caddyfile := func(options string) string { return flatCaddyfile(addr, a.dir, up.addr(), options) }
	caddy := startCaddy(t, caddyfile(""))
	config := a.machineConfig(t)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var ready sync.WaitGroup
	ready.Add(sessions)
	for range sessions {
		conn := dial(t, addr, config)
		wg.Go(func() {
			sent := make(chan int64, 1)
			go func() {
				s, n := newStreamOf(1), int64(0)
				pace := time.NewTicker(10 * time.Millisecond)
				defer pace.Stop()
				for buf := make([]byte, 2000); ; {
					select {
					case <-stop:
						conn.CloseWrite()
						sent <- n
						return
					case <-pace.C:
						s.readFull(buf)
						k, err := conn.Write(buf)
						n += int64(k)
						if err != nil {
							t.Errorf("after %d bytes: %v", n, err)
							sent <- n
							return
						}
					}
				}
			}()
			want := newStreamOf(1)
			got, expected := make([]byte, 10_000), make([]byte, 10_000)
			var n int64
			once := sync.OnceFunc(ready.Done)
			defer once()
			for {
				k, err := conn.Read(got)
				want.readFull(expected[:k])
				if string(got[:k]) != string(expected[:k]) {
					t.Errorf("altered after %d bytes", n)
					return
				}
				n += int64(k)
				once()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Errorf("after %d bytes: %v", n, err)
					return
				}
			}
			if s := <-sent; s != n {
				t.Errorf("%d bytes sent, %d came back", s, n)
			}
		})
	}
	ready.Wait()
	for i := range reloads {
		if err := caddy.load("text/caddyfile", withAdmin(caddyfile(fmt.Sprintf("max_packet %dKiB", i+1)), caddy.admin)); err != nil {
			t.Error(err)
		}
		name := fmt.Sprintf("new-%d", i)
		identity := filepath.Join(t.TempDir(), name)
		flatauth(t, "account", "add", name, "--store", a.dir, "--type", "certificate", "--out", identity)
		who := []string{"--identity", identity}
		if stdout, stderr, code := connect(t, strings.NewReader("hello"), addr, who); stdout != "hello" || code != 0 {
			t.Errorf("an account just added: exit code %d, %q, %s", code, stdout, stderr)
		}
		flatauth(t, "account", "disable", name, "--store", a.dir)
		if stdout, _, code := connect(t, strings.NewReader("hello"), addr, who); stdout != "" || code != 2 {
			t.Errorf("an account just disabled: exit code %d, %q", code, stdout)
		}
		flatauth(t, "account", "enable", name, "--store", a.dir)
		if stdout, _, code := connect(t, strings.NewReader("hello"), addr, who); stdout != "hello" || code != 0 {
			t.Errorf("enabled again: exit code %d, %q", code, stdout)
		}
	}
	close(stop)
	wg.Wait()
	eventually(t, "the log", func() bool { return len(caddy.entries("session ended")) == sessions+2*reloads })
	for _, entry := range caddy.entries("session ended") {
		if entry["reason"] != "complete" {
			t.Errorf("%v", entry)
		}
	}
}
