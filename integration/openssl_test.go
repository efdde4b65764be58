package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flatauth/caddy-flatauth/internal/testnet"
)

// Bundles and keys that the openssl command has made log in, and its weak
// bundles are refused with the command that makes good ones.
func TestOpenSSL(t *testing.T) {
	need(t, "openssl")
	a := newAccounts(t)
	up := newUpstream(t, echo)
	addr := testnet.FreeAddr()
	startCaddy(t, flatCaddyfile(addr, a.dir, up.addr(), ""))
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	openssl := func(args ...string) { t.Helper(); mustRun(t, nil, "openssl", args...) }
	strong := []string{"-keypbe", "AES-256-CBC", "-certpbe", "AES-256-CBC", "-macalg", "sha256", "-iter", "600000"}
	export := func(kind, name string, args ...string) string {
		t.Helper()
		out := path(name + ".p12")
		openssl(append([]string{"pkcs12", "-export", "-inkey", path(kind + ".key"), "-in", path(kind + ".crt"), "-out", out,
			"-passout", "pass:" + passphrase}, args...)...)
		return out
	}
	login := func(who []string) {
		t.Helper()
		stdout, stderr, code := connect(t, strings.NewReader("hello"), addr, who)
		if stdout != "hello" || code != 0 {
			t.Errorf("%q: exit code %d, %q\n%s", who, code, stdout, stderr)
		}
	}

	for _, kind := range [][]string{
		{"rsa2048", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
		{"rsa4096", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"},
		{"p256", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		{"p384", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"},
		{"x25519", "-algorithm", "X25519"},
	} {
		name := kind[0]
		openssl(append([]string{"genpkey", "-out", path(name + ".key")}, kind[1:]...)...)
		if name == "x25519" { // cannot sign: another key does
			openssl("req", "-new", "-key", path("p256.key"), "-subj", "/CN=x25519", "-out", path("x25519.csr"))
			openssl("pkey", "-in", path("x25519.key"), "-pubout", "-out", path("x25519.pub"))
			openssl("x509", "-req", "-in", path("x25519.csr"), "-CA", path("p256.crt"), "-CAkey", path("p256.key"), "-CAcreateserial",
				"-force_pubkey", path("x25519.pub"), "-out", path("x25519.crt"))
		} else {
			openssl("req", "-x509", "-key", path(name+".key"), "-subj", "/CN="+name, "-days", "2", "-out", path(name+".crt"))
		}
		bundle := export(name, name, strong...)
		// The certificate given beside it, and unlocked once: two ways to the
		// same account.
		flatauth(t, "account", "import", name, "--store", a.dir, "--pkcs12", bundle, "--certificate", path(name+".crt"))
		login(a.person(name))
		flatauth(t, "account", "remove", name, "--store", a.dir)
		flatauth(t, "account", "import", name, "--store", a.dir, "--pkcs12", bundle, "--passphrase-file", a.passphraseFile)
		login(a.person(name))
		flatauth(t, "account", "remove", name, "--store", a.dir)

		// The same key for a machine
		flatauth(t, "account", "import", "m-"+name, "--store", a.dir, "--certificate", path(name+".crt"))
		key, err := os.ReadFile(path(name + ".key"))
		if err != nil {
			t.Fatal(err)
		}
		cert, err := os.ReadFile(path(name + ".crt"))
		if err != nil {
			t.Fatal(err)
		}
		identity := path(name + ".pem")
		if err := os.WriteFile(identity, append(cert, key...), 0o600); err != nil {
			t.Fatal(err)
		}
		login([]string{"--identity", identity})
		// … belongs to nobody else
		_, stderr, code := run(t, nil, caddyPath, "flatauth", "account", "import", "second", "--store", a.dir, "--certificate", path(name+".crt"))
		if code != 1 || !strings.Contains(stderr, "m-"+name) {
			t.Errorf("the key for a second account: exit code %d, %s", code, stderr)
		}
	}

	refused := func(what, bundle, cert, want string) {
		t.Helper()
		_, stderr, code := run(t, nil, caddyPath, "flatauth", "account", "import", "weak", "--store", a.dir, "--pkcs12", bundle, "--certificate", cert)
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d\n%s", what, code, stderr)
		}
	}
	const mend = "openssl pkcs12 -export"
	for what, args := range map[string][]string{
		"RC2":             {"-legacy"},
		"3DES":            {"-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-iter", "600000"},
		"2048 iterations": {},
		"HMAC-SHA-1":      {"-macalg", "sha1", "-iter", "600000"},
		"AES-128-CBC":     {"-keypbe", "AES-128-CBC", "-iter", "600000"},
		"not encrypted":   {"-keypbe", "NONE", "-iter", "600000"},
	} {
		bundle := export("p256", "weak", args...)
		refused(what, bundle, path("p256.crt"), what)
		refused(what, bundle, path("p256.crt"), mend)
	}
	refused("no MAC", export("p256", "nomac", append(strong, "-nomac")...), path("p256.crt"), "no MAC")
	refused("another certificate", path("p256.p12"), path("p384.crt"), "not the one in the PKCS#12")
	refused("not a bundle", path("p256.key"), path("p256.crt"), "not a PKCS#12")

	// The command that is recommended makes one that is accepted.
	out := mustRun(t, nil, caddyPath, "flatauth", "account", "import", "--help")
	line := out[strings.Index(out, mend):]
	line = strings.NewReplacer("KEY.pem", path("rsa2048.key"), "CERTIFICATE.pem", path("rsa2048.crt"), "BUNDLE.p12", path("good.p12")).
		Replace(line[:strings.Index(line, "\n")])
	openssl(append(strings.Fields(line)[1:], "-passout", "pass:"+passphrase)...)
	flatauth(t, "account", "remove", "m-rsa2048", "--store", a.dir)
	flatauth(t, "account", "import", "good", "--store", a.dir, "--pkcs12", path("good.p12"), "--passphrase-file", a.passphraseFile)
	login(a.person("good"))

	// And openssl opens what account add has made.
	data, err := os.ReadFile(filepath.Join(a.dir, "alice.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, base64, _ := strings.Cut(string(data), `"pkcs12": "`)
	base64, _, _ = strings.Cut(base64, `"`)
	der := mustRun(t, strings.NewReader(base64), "openssl", "base64", "-d", "-A")
	if out := mustRun(t, strings.NewReader(der), "openssl", "pkcs12", "-passin", "pass:"+passphrase, "-nodes"); !strings.Contains(out, "CN = alice") || !strings.Contains(out, "PRIVATE KEY") {
		t.Errorf("openssl reads %s", out)
	}
}
