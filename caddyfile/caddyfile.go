// Package caddyfile is the Caddyfile grammar that flatauth's modules share:
// blocks of options that may stand once, sizes, durations, and the modules that
// others are given.
package caddyfile

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"
)

// Options are the options of a block, by name. Each is called with the
// dispenser on its name, once: a second time is an error.
type Options map[string]func(d *caddyfile.Dispenser) error

// Block reads the block that follows, if there is one.
func Block(d *caddyfile.Dispenser, options Options) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		read, ok := options[name]
		if !ok {
			return d.Errf("unrecognized option '%s': there is %s", name, strings.Join(slices.Sorted(maps.Keys(options)), ", "))
		}
		if seen[name] {
			return d.Errf("duplicate option '%s'", name)
		}
		seen[name] = true
		if err := read(d); err != nil {
			return err
		}
		if d.NextArg() {
			return d.ArgErr()
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("option '%s' does not take a block", name)
		}
	}
	return nil
}

// Arg reads the one argument of an option.
func Arg(d *caddyfile.Dispenser) (string, error) {
	if d.CountRemainingArgs() != 1 {
		return "", d.ArgErr()
	}
	d.NextArg()
	return d.Val(), nil
}

// Duration returns an option that is a duration, such as 10s.
func Duration(to *caddy.Duration) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		arg, err := Arg(d)
		if err != nil {
			return err
		}
		v, err := caddy.ParseDuration(arg)
		if err != nil {
			return d.Errf("not a duration: '%s' (one is written as 10s, 5m or 1h)", arg)
		}
		*to = caddy.Duration(v)
		return nil
	}
}

// Size returns an option that is a number of bytes, such as 65536 or 64KiB.
func Size(to *int) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		arg, err := Arg(d)
		if err != nil {
			return err
		}
		v, err := humanize.ParseBytes(arg)
		if err != nil || v > 1<<31-1 {
			return d.Errf("not a size: '%s' (one is written as 65536 or 64KiB)", arg)
		}
		*to = int(v)
		return nil
	}
}

// Int returns an option that is a whole number.
func Int(to *int) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		arg, err := Arg(d)
		if err != nil {
			return err
		}
		if *to, err = strconv.Atoi(arg); err != nil {
			return d.Errf("not a number: '%s'", arg)
		}
		return nil
	}
}

// List returns an option that is one or more words.
func List(to *[]string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if *to = d.RemainingArgs(); len(*to) == 0 {
			return d.ArgErr()
		}
		return nil
	}
}

// Module returns an option whose first argument names a module of the
// namespace, which reads the rest. The name goes into inlineKey.
func Module(to *json.RawMessage, namespace, inlineKey string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if !d.NextArg() {
			return d.ArgErr()
		}
		name := d.Val()
		if _, err := caddy.GetModule(namespace + "." + name); err != nil {
			var names []string
			for _, m := range caddy.GetModules(namespace) {
				names = append(names, m.ID.Name())
			}
			return d.Errf("there is no %s.%s, but there is: %s", namespace, name, strings.Join(names, ", "))
		}
		module, err := caddyfile.UnmarshalModule(d, namespace+"."+name)
		if err != nil {
			return err
		}
		*to = caddyconfig.JSONModuleObject(module, inlineKey, name, nil)
		return nil
	}
}
