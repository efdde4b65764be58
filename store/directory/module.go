package directory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	flatcaddyfile "github.com/flatauth/caddy-flatauth/caddyfile"
	"github.com/flatauth/caddy-flatauth/store"
)

func init() {
	caddy.RegisterModule(&Store{})
}

// Store is a folder with one JSON file for each account. Accounts that are
// added, changed or removed are seen at once, without a reload.
type Store struct {
	// Path is the folder. A relative path is taken from where Caddy was
	// started. Default: flatauth/accounts in Caddy's data directory.
	Path string `json:"path,omitempty"`

	*Directory `json:"-"`
}

// CaddyModule returns the Caddy module information.
func (*Store) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "flatauth.stores.directory",
		New: func() caddy.Module { return new(Store) },
	}
}

// DefaultPath is the folder that is used if none is named.
func DefaultPath() string { return filepath.Join(caddy.AppDataDir(), "flatauth", "accounts") }

// Provision sets up the store.
func (s *Store) Provision(ctx caddy.Context) error {
	// A placeholder that is not set must not lead to other people's accounts.
	path, err := caddy.NewReplacer().ReplaceOrErr(s.Path, true, true)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	if path == "" {
		path = DefaultPath()
	}
	logger := ctx.Logger()
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		logger.Warn("the folder of accounts does not exist yet", zap.String("path", path))
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s is no folder: a store is a folder of accounts", path)
	}
	s.Directory = Open(path)
	s.index.report = func(err error) { logger.Error("not an account", zap.Error(err)) }
	return nil
}

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	directory [<path>] {
//		path <path>
//	}
func (s *Store) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the name
	if d.NextArg() {
		s.Path = d.Val()
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	return flatcaddyfile.Block(d, flatcaddyfile.Options{
		"path": func(d *caddyfile.Dispenser) (err error) {
			if s.Path != "" {
				return d.Err("the path is given twice")
			}
			s.Path, err = flatcaddyfile.Arg(d)
			return err
		},
	})
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Store)(nil)
	_ caddyfile.Unmarshaler = (*Store)(nil)
	_ store.Store           = (*Store)(nil)
	_ store.Lister          = (*Store)(nil)
	_ store.Writer          = (*Store)(nil)
)
