package directory

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/protocol/bundle"
	"github.com/flatauth/caddy-flatauth/store"
	"github.com/flatauth/caddy-flatauth/store/storetest"
)

func TestConformance(t *testing.T) {
	paths := map[*testing.T]string{}
	storetest.Run(t, func(t *testing.T) storetest.WritableStore {
		if paths[t] == "" {
			paths[t] = filepath.Join(t.TempDir(), "accounts")
		}
		return Open(paths[t])
	})
}

// TestFileNames keeps names where an operator looks for them, and inside of
// the folder.
func TestFileNames(t *testing.T) {
	for name, want := range map[string]string{
		"alice":       "alice.json",
		"alice@ops":   "alice@ops.json",
		"../x":        "%2e.%2fx.json",
		".lock":       "%2elock.json",
		"ö":           "%c3%b6.json",
		"a%b":         "a%25b.json",
		"jo.doe@b.eu": "jo.doe@b.eu.json",
	} {
		if got := fileName(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if got := fileName(strings.Repeat("日", 85)); len(got) > 255 {
		t.Errorf("a name of %d bytes", len(got))
	}
}

// A file copied in by hand is an account at once; one that does not hold what
// its name says is an error that says so.
func TestCopiedByHand(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	alice := storetest.Machine(t, "alice")
	if err := Open(from).Create(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(from, "alice.json"))
	if err != nil {
		t.Fatal(err)
	}
	d := Open(to)
	if _, err := d.ByThumbprint(t.Context(), alice.Thumbprint()); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "alice.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := d.ByName(t.Context(), "alice"); err != nil || !got.Equal(alice) {
		t.Errorf("by name: %+v, %v", got, err)
	}
	if got, err := d.ByThumbprint(t.Context(), alice.Thumbprint()); err != nil || !got.Equal(alice) {
		t.Errorf("by thumbprint: %+v, %v", got, err)
	}

	if err := os.WriteFile(filepath.Join(to, "bob.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ByName(t.Context(), "bob"); err == nil || !strings.Contains(err.Error(), `holds the account "alice"`) {
		t.Errorf("bob: %v", err)
	}
}

// A copy under another name is no account, gets in the way of none, and does
// not free the key.
func TestStrayCopy(t *testing.T) {
	dir := t.TempDir()
	d := Open(dir)
	alice := storetest.Machine(t, "alice")
	if err := d.Create(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "alice.json"))
	if err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, "alice-backup.json")
	if err := os.WriteFile(stray, data, 0o600); err != nil {
		t.Fatal(err)
	}
	bob := storetest.Machine(t, "bob")
	bob.Certificate = alice.Certificate
	check := func() {
		t.Helper()
		d.index.read = time.Time{}
		if _, err := d.ByThumbprint(t.Context(), alice.Thumbprint()); err != nil {
			t.Error(err)
		}
		if err := d.Create(t.Context(), bob); !errors.Is(err, store.ErrKeyInUse) {
			t.Errorf("her key for bob: %v", err)
		}
	}
	check()
	os.Remove(stray)
	check()

	// Two files with one key, made by hand: each removed leaves the other.
	bobData, err := encode(bob)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bob.json"), bobData, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ByThumbprint(t.Context(), alice.Thumbprint()); err != nil {
		t.Error(err)
	}
	os.Remove(filepath.Join(dir, "bob.json"))
	check()
}

// A file that cannot be read for a while is found when it can.
func TestUnreadableForAWhile(t *testing.T) {
	dir := t.TempDir()
	d := Open(dir)
	alice := storetest.Machine(t, "alice")
	if err := d.Create(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "alice.json")
	long := time.Now().Add(-time.Hour)
	os.Chtimes(path, long, long)
	os.Rename(path, path+".away") // as good as unreadable, also for root
	os.Symlink("alice.json.away-2", path)
	if _, err := d.ByThumbprint(t.Context(), alice.Thumbprint()); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	os.Rename(path+".away", path+".away-2")
	d.index.read = time.Time{}
	if _, err := d.ByThumbprint(t.Context(), alice.Thumbprint()); err != nil {
		t.Error(err)
	}
}

// A file written over in place is seen by name at once, and by thumbprint after
// a while.
func TestEditedInPlace(t *testing.T) {
	dir := t.TempDir()
	d := Open(dir)
	before, after := storetest.Machine(t, "alice"), storetest.Machine(t, "alice")
	if err := d.Create(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ByThumbprint(t.Context(), before.Thumbprint()); err != nil {
		t.Fatal(err)
	}
	data, err := encode(after)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "alice.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := d.ByName(t.Context(), "alice"); err != nil || !got.Equal(after) {
		t.Errorf("by name: %+v, %v", got, err)
	}
	if _, err := d.ByThumbprint(t.Context(), before.Thumbprint()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the old certificate: %v", err)
	}
	d.index.read = time.Time{} // a while ago
	if got, err := d.ByThumbprint(t.Context(), after.Thumbprint()); err != nil || !got.Equal(after) {
		t.Errorf("by thumbprint: %+v, %v", got, err)
	}
}

func TestBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	d := Open(dir)
	alice := storetest.Machine(t, "alice")
	if err := d.Create(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "alice.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"empty.json":    "",
		"half.json":     string(good[:len(good)/2]),
		"misspelt.json": strings.Replace(string(good), `"certificate"`, `"disable": true, "certificate"`, 1),
		"two.json":      string(good) + `{"disabled": true}`,
		"large.json":    strings.Repeat(" ", maxFileLen+1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		account := strings.TrimSuffix(name, ".json")
		if _, err := d.ByName(t.Context(), account); err == nil || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The others do not suffer from it, and List names each.
	if _, err := d.ByThumbprint(t.Context(), alice.Thumbprint()); err != nil {
		t.Error(err)
	}
	good1, bad := 0, 0
	for _, err := range d.List(t.Context()) {
		if err != nil {
			bad++
		} else {
			good1++
		}
	}
	if good1 != 1 || bad != 5 {
		t.Errorf("%d accounts and %d errors listed", good1, bad)
	}
}

// A process that is killed while it writes leaves the old account or the new
// one, and nothing that gets in the way.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("FLATAUTH_TEST_WRITE"); dir != "" {
		writeForEver(t, dir)
	}
	dir := t.TempDir()
	d := Open(dir)
	alice := storetest.Machine(t, "alice")
	if err := d.Create(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "FLATAUTH_TEST_WRITE="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Wait for its first write, then a little less or more.
		path := filepath.Join(dir, "started-"+strconv.Itoa(cmd.Process.Pid)+".json")
		for deadline := time.Now().Add(30 * time.Second); ; {
			if _, err := os.Stat(path); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatal("the writer did not begin")
			}
		}
		for end := time.Now().Add(time.Duration(i) * 300 * time.Microsecond); time.Now().Before(end); {
		}
		cmd.Process.Kill()
		cmd.Wait()
		os.Remove(path)

		got, err := d.ByName(t.Context(), "alice")
		if err != nil {
			t.Fatal(err)
		}
		got.Disabled = false
		if !got.Equal(alice) {
			t.Fatalf("got %+v", got)
		}
	}
	// The next writer is not kept waiting by a lock, and tidies up.
	if err := d.Update(t.Context(), "alice", func(a *store.Account) error { a.Disabled = false; return nil }); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, temporary+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
}

func writeForEver(t *testing.T, dir string) {
	d := Open(dir)
	for n := 0; ; n++ {
		if err := d.Update(t.Context(), "alice", func(a *store.Account) error { a.Disabled = !a.Disabled; return nil }); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			os.WriteFile(filepath.Join(dir, "started-"+strconv.Itoa(os.Getpid())+".json"), nil, 0o600)
		}
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "accounts")
	d := Open(dir)
	if err := d.Create(t.Context(), storetest.Machine(t, "alice")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "alice.json"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	data, err := encode(storetest.Machine(f, "alice"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"name":"alice"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := decode(data)
		if err != nil {
			return
		}
		again, err := encode(a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := decode(again)
		if err != nil || !a.Equal(b) {
			t.Errorf("%+v became %+v, %v", a, b, err)
		}
	})
}

func FuzzFileName(f *testing.F) {
	f.Add("../x")
	f.Add("a@b")
	f.Fuzz(func(t *testing.T, name string) {
		name, err := protocol.NormalizeName(name)
		if err != nil {
			return
		}
		got := fileName(name)
		if got != filepath.Base(got) || len(got) > 255 || got[0] == '.' || strings.ContainsAny(got, `/\:*?"<>|`) {
			t.Errorf("%q has the file %q", name, got)
		}
	})
}

// A path with a placeholder that is not set is refused: another folder has
// other people.
func TestPathPlaceholder(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	s := &Store{Path: "{env.FLATAUTH_TEST_NOT_SET}"}
	if err := s.Provision(ctx); err == nil {
		t.Error("not refused")
	}
	t.Setenv("FLATAUTH_TEST_SET", t.TempDir())
	s = &Store{Path: "{env.FLATAUTH_TEST_SET}/x"}
	if err := s.Provision(ctx); err != nil || s.Directory.path != os.Getenv("FLATAUTH_TEST_SET")+"/x" {
		t.Errorf("%v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&Store{Path: file}).Provision(ctx); err == nil || !strings.Contains(err.Error(), "no folder") {
		t.Errorf("%v", err)
	}
}

// A machine's file that is broken is reported, once: the thumbprint that is
// asked for does not lead to it.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	d := Open(dir)
	var reports []string
	d.index.report = func(err error) { reports = append(reports, err.Error()) }
	sensor := storetest.Machine(t, "sensor")
	data, err := encode(sensor)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sensor.json")
	data = []byte(strings.Replace(string(data), `"certificate":`, `"disbled": true, "certificate":`, 1))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	os.Chtimes(path, long, long)
	for range 3 {
		d.index.read = time.Time{}
		if _, err := d.ByThumbprint(t.Context(), sensor.Thumbprint()); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	}
	if len(reports) != 1 || !strings.Contains(reports[0], "sensor.json") || !strings.Contains(reports[0], "disbled") {
		t.Errorf("%q", reports)
	}
}

// A certificate of somebody else's making cannot write to a terminal.
func TestControlCharacters(t *testing.T) {
	_, cert, err := bundle.NewKey(bundle.P256, "x\x1b[2J\nname  root")
	if err != nil {
		t.Fatal(err)
	}
	account := &store.Account{Name: "mallory", Type: store.Certificate, Certificate: cert}
	if err := Open(t.TempDir()).Create(t.Context(), account); err == nil || !strings.Contains(err.Error(), "control characters") {
		t.Errorf("%v", err)
	}
}
