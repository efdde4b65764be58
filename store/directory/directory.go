// Package directory is the store flatauth.stores.directory: a folder with one
// JSON file for each account, which an operator can read, copy and keep in git.
//
// A file is named after its account and holds all of it, so it is replaced as
// one, and it can be copied from one folder to another:
//
//	{
//		"name": "alice",
//		"type": "interactive",
//		"created": "2026-01-02T15:04:05Z",
//		"certificate": "-----BEGIN CERTIFICATE-----\n…",
//		"pkcs12": "MIIE…"
//	}
//
// The name inside counts; the name of the file has to fit it. Files whose names
// begin with a dot are not accounts.
package directory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/store"
)

// A Directory is a folder of accounts.
type Directory struct {
	path  string
	index *index
}

// Open returns the store in the folder, which need not exist before the first
// account is created.
func Open(path string) *Directory {
	return &Directory{path: path, index: newIndex(path)}
}

// String is the path of the folder.
func (d *Directory) String() string { return d.path }

// file is an account as it stands in its file.
type file struct {
	Name        string     `json:"name"`
	Type        store.Type `json:"type"`
	Created     time.Time  `json:"created,omitzero"`
	Disabled    bool       `json:"disabled,omitempty"`
	Certificate string     `json:"certificate"`      // PEM
	Bundle      []byte     `json:"pkcs12,omitempty"` // base64
}

const (
	extension = ".json"

	// maxFileLen bounds what is read of a file: far above a bundle of 16 KiB
	// and a certificate.
	maxFileLen = 256 << 10

	// maxPlainLen is the length of the longest name of a file that is the
	// account's own, which leaves room for the extension in 255 bytes.
	maxPlainLen = 200
)

// fileName is the name of the file of an account. Letters, digits and a few
// marks stand for themselves, every other byte is %XX in lower case; so no
// account's name leads out of the folder, and as names are case-mapped, no
// two meet on a file system that ignores case. What gets too long ends in the
// name's SHA-256 instead.
func fileName(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '@', c == '_', c == '-', c == '+',
			c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	s := b.String()
	if len(s) > maxPlainLen {
		sum := sha256.Sum256([]byte(name))
		s = s[:maxPlainLen/2] + "~" + hex.EncodeToString(sum[:])
	}
	return s + extension
}

// read reads the account in the named file of the folder.
func (d *Directory) read(name string) (*store.Account, error) {
	path := filepath.Join(d.path, name)
	account, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return account, checkFileName(path, account)
}

// checkFileName refuses a file that is not named after the account in it.
func checkFileName(path string, account *store.Account) error {
	if want := fileName(account.Name); filepath.Base(path) != want {
		return fmt.Errorf("%s holds the account %q, whose file is %s", path, account.Name, want)
	}
	return nil
}

func readFile(path string) (*store.Account, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFileLen || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not an account: it is no file of at most %d bytes", path, maxFileLen)
	}
	data := make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if n < len(data) {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	account, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return account, nil
}

func decode(data []byte) (*store.Account, error) {
	var f file
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // a misspelt "disabled" must not go unnoticed
	if err := dec.Decode(&f); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("there is something after the account")
	}
	block, _ := pem.Decode([]byte(f.Certificate))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New(`"certificate" is not a certificate in PEM`)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	account := &store.Account{
		Name: f.Name, Type: f.Type, Created: f.Created, Disabled: f.Disabled,
		Certificate: cert, Bundle: f.Bundle,
	}
	return account, account.Check()
}

func encode(a *store.Account) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "\t")
	enc.SetEscapeHTML(false)
	err := enc.Encode(&file{
		Name: a.Name, Type: a.Type, Created: a.Created, Disabled: a.Disabled,
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw})),
		Bundle:      a.Bundle,
	})
	return b.Bytes(), err
}

func notFound(what string) error { return fmt.Errorf("%w: %s", store.ErrNotFound, what) }

// ByName implements store.Store.
func (d *Directory) ByName(ctx context.Context, name string) (*store.Account, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	account, err := d.read(fileName(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(name)
	}
	if err == nil && account.Name != name {
		return nil, notFound(name) // two names with one file name: a hash collided
	}
	return account, err
}

// ByThumbprint implements store.Store.
func (d *Directory) ByThumbprint(ctx context.Context, thumbprint protocol.Thumbprint) (*store.Account, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, err := d.index.byThumbprint(thumbprint)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		// The file is what counts: it may have changed since.
		account, err := d.read(name)
		if err == nil && account.Thumbprint() == thumbprint {
			return account, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return nil, notFound("certificate " + thumbprint.String())
}

// List implements store.Lister.
func (d *Directory) List(ctx context.Context) iter.Seq2[*store.Account, error] {
	return func(yield func(*store.Account, error) bool) {
		names, err := accountFiles(d.path)
		if err != nil {
			yield(nil, err)
			return
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			account, err := d.read(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed meanwhile
			}
			if !yield(account, err) {
				return
			}
		}
	}
}

// accountFiles returns the names of the files in the folder that are accounts'.
// A folder that does not exist has none.
func accountFiles(path string) ([]string, error) {
	names, err := fileNames(path, func(name string) bool {
		return strings.HasSuffix(name, extension) && !strings.HasPrefix(name, ".")
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// fileNames returns the names in the folder that are wanted.
func fileNames(path string, wanted func(name string) bool) ([]string, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return slices.DeleteFunc(names, func(name string) bool { return !wanted(name) }), err
}

// Create implements store.Writer.
func (d *Directory) Create(ctx context.Context, account *store.Account) error {
	return d.change(ctx, func() error {
		name := fileName(account.Name)
		if _, err := os.Lstat(filepath.Join(d.path, name)); err == nil {
			return fmt.Errorf("%w: %s", store.ErrExists, account.Name)
		}
		return d.write(account)
	})
}

// Update implements store.Writer.
func (d *Directory) Update(ctx context.Context, name string, change func(*store.Account) error) error {
	return d.change(ctx, func() error {
		account, err := d.ByName(ctx, name)
		if err != nil {
			return err
		}
		if err := change(account); err != nil {
			return err
		}
		if account.Name != name {
			return fmt.Errorf("the name of %s cannot be changed", name)
		}
		return d.write(account)
	})
}

// Remove implements store.Writer.
func (d *Directory) Remove(ctx context.Context, name string) error {
	return d.change(ctx, func() error {
		err := os.Remove(filepath.Join(d.path, fileName(name)))
		if errors.Is(err, fs.ErrNotExist) {
			return notFound(name)
		}
		if err != nil {
			return err
		}
		return syncDir(d.path)
	})
}

const temporary = ".new-"

// change runs f while no other process changes the folder.
func (d *Directory) change(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return err
	}
	lock := filepath.Join(d.path, ".lock")
	unlock, err := lockedfile.MutexAt(lock).Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := giveToOwner(lock, d.path); err != nil {
		return err
	}
	defer d.index.invalidate()
	// Nobody else is writing, so what is half-written was left by a process
	// that was killed.
	left, err := fileNames(d.path, func(name string) bool { return strings.HasPrefix(name, temporary) })
	if err != nil {
		return err
	}
	for _, name := range left {
		os.Remove(filepath.Join(d.path, name))
	}
	return f()
}

// write writes the account's file. The caller holds the lock.
func (d *Directory) write(account *store.Account) error {
	if err := account.Check(); err != nil {
		return err
	}
	owners, err := d.index.byKey(account.KeyHash())
	if err != nil {
		return err
	}
	for _, owner := range owners {
		if owner == fileName(account.Name) {
			continue
		}
		// The index says where the key was seen; the file says whether it is
		// still there.
		other, err := d.read(owner)
		if err == nil && other.KeyHash() == account.KeyHash() {
			return fmt.Errorf("%w: %s", store.ErrKeyInUse, other.Name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	data, err := encode(account)
	if err != nil {
		return err
	}
	return writeFile(d.path, fileName(account.Name), data)
}

// writeFile replaces the named file of the folder as a whole.
func writeFile(dir, name string, data []byte) error {
	f, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails when all went well
	_, err = f.Write(data)
	if err == nil {
		// An operator is often root and the server is not: what is in the
		// folder belongs to whom the folder belongs to.
		err = giveToOwner(f.Name(), dir)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// Interface guards
var (
	_ store.Store  = (*Directory)(nil)
	_ store.Lister = (*Directory)(nil)
	_ store.Writer = (*Directory)(nil)
)
