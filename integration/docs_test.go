package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/flatauth/caddy-flatauth/internal/testnet"
)

var codeBlock = regexp.MustCompile("(?ms)^```(caddyfile|json)\n(.*?)^```$")

// Every configuration in the documentation works, and where JSON follows a
// Caddyfile it says the same.
func TestDocs(t *testing.T) {
	pages, err := filepath.Glob("../docs/*/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../README.md", "../docs/command.md") {
		data, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		var adapted any
		blocks := codeBlock.FindAllStringSubmatch(string(data), -1)
		for i, block := range blocks {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(page), i), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), map[string]string{"caddyfile": "Caddyfile", "json": "caddy.json"}[block[1]])
				if err := os.WriteFile(path, []byte(block[2]), 0o600); err != nil {
					t.Fatal(err)
				}
				mustRun(t, nil, caddyPath, "validate", "--config", path)
				if block[1] == "caddyfile" {
					adapted = parseJSON(t, mustRun(t, nil, caddyPath, "adapt", "--config", path))
				} else if got := parseJSON(t, block[2]); !reflect.DeepEqual(got, adapted) {
					t.Errorf("the JSON is not what the Caddyfile before it becomes")
				}
			})
		}
	}
}

func parseJSON(t *testing.T, s string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestExamples(t *testing.T) {
	examples, err := filepath.Glob("../examples/*")
	if err != nil || len(examples) == 0 {
		t.Fatal("no examples: ", err)
	}
	for _, path := range examples {
		t.Run(filepath.Base(path), func(t *testing.T) {
			args := []string{"validate", "--config", path}
			if strings.HasSuffix(path, "Caddyfile") {
				args = append(args, "--adapter", "caddyfile")
				if _, stderr, _ := run(t, nil, caddyPath, "fmt", "--diff", path); stderr != "" {
					t.Error(stderr)
				}
			}
			mustRun(t, nil, caddyPath, args...)
		})
	}
}

// The first command of the README leaves a login that works.
func TestQuickstart(t *testing.T) {
	need(t, "bash", "go")
	dir := t.TempDir()
	t.Setenv("FLATAUTH_PORT", port(testnet.FreeAddr()))
	for range 2 { // a second time is no worse
		out := mustRun(t, nil, "../quickstart", dir)
		if !strings.Contains(out, "hello from alice\nhello from sensor\n") {
			t.Errorf("%s", out)
		}
	}
	pid, err := os.ReadFile(filepath.Join(dir, "server.pid"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("kill", strings.TrimSpace(string(pid))).Run() })
	addr := "127.0.0.1:" + os.Getenv("FLATAUTH_PORT")
	who := []string{"--user", "alice", "--passphrase-file", filepath.Join(dir, "alice.passphrase")}
	if stdout, stderr, code := connect(t, strings.NewReader("again"), addr, who); stdout != "again" || code != 0 {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
}
