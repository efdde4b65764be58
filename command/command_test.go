package command_test

import (
	"path/filepath"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"
	"github.com/rogpeppe/go-internal/testscript"

	_ "github.com/flatauth/caddy-flatauth"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"caddy": caddycmd.Main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_DATA_HOME", filepath.Join(env.WorkDir, "data"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TODAY", time.Now().UTC().Format(time.DateOnly))
			return nil
		},
	})
}
