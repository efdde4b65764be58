package integration

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flatauth/caddy-flatauth/internal/testnet"
)

// A sshd is Debian's OpenSSH server, and a client's configuration for it.
type sshd struct {
	addr   string
	config string // of ssh, for -F
}

func startSSHD(t *testing.T) sshd {
	t.Helper()
	need(t, "ssh", "scp", "ssh-keygen")
	path, err := exec.LookPath("sshd")
	if err != nil {
		path = "/usr/sbin/sshd" // not in everybody's PATH
	}
	need(t, path)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid == "0" {
		os.MkdirAll("/run/sshd", 0o755) // sshd asks for it when it is root
	}
	dir := t.TempDir()
	for _, key := range []string{"host", "client"} {
		mustRun(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	addr := testnet.FreeAddr()
	host, port, _ := net.SplitHostPort(addr)
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := write("sshd_config", fmt.Sprintf(`ListenAddress %s
Port %s
HostKey %s/host
AuthorizedKeysFile %[3]s/client.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
`, host, port, dir))
	start(t, path, "-D", "-e", "-f", config)
	eventually(t, "sshd", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return sshd{addr, write("ssh_config", fmt.Sprintf(`Host *
	User %s
	IdentityFile %s/client
	IdentitiesOnly yes
	StrictHostKeyChecking no
	UserKnownHostsFile %[2]s/known_hosts
	BatchMode yes
	LogLevel ERROR
`, me.Username, dir))}
}

// An upstream that speaks first: SSH through connect as its ProxyCommand.
func TestSSH(t *testing.T) {
	d := startSSHD(t)
	a := newAccounts(t)
	addr := testnet.FreeAddr()
	caddy := startCaddy(t, flatCaddyfile(addr, a.dir, d.addr, ""))
	for _, who := range [][]string{a.person("alice"), a.machine()} {
		proxy := "ProxyCommand=" + strings.Join(append([]string{caddyPath, "flatauth", "connect", addr}, who...), " ")
		if out := mustRun(t, strings.NewReader("there"), "ssh", "-F", d.config, "-o", proxy, "flat", "echo hello $(cat)"); out != "hello there\n" {
			t.Errorf("%q", out)
		}
	}

	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(newStream(), 100_000_000)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	proxy := "ProxyCommand=" + strings.Join(append([]string{caddyPath, "flatauth", "connect", addr}, a.machine()...), " ")
	mustRun(t, nil, "scp", "-F", d.config, "-o", proxy, from, "flat:"+to)
	got, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	g := sha256.New()
	if n, err := io.Copy(g, got); n != 100_000_000 || err != nil || string(g.Sum(nil)) != string(h.Sum(nil)) {
		t.Errorf("%d bytes, %v, or another sum", n, err)
	}
	eventually(t, "the log", func() bool { return len(caddy.entries("session ended")) == 3 })
}
