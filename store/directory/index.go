package directory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/flatauth/caddy-flatauth/protocol"
)

// An index finds the file of a thumbprint or a key. It is a hint that is held
// in memory: who follows it reads the file and looks again.
//
// It is brought up to date when the folder has changed, which is when a file
// was added, removed or replaced as a whole (as this package, editors and git
// do). A file that was written over in place is noticed by its size and time
// when something is looked for and not found, though not at every such time:
// that costs a look at every file.
type index struct {
	dir    string
	report func(error) // of files that are no accounts, once each; may be nil

	mu           sync.Mutex
	files        map[string]indexed               // by name of the file
	thumbprints  map[protocol.Thumbprint][]string // names of files: one, if all is well
	keys         map[[32]byte][]string
	modified     time.Time // of the folder, when it was last read
	settled      bool      // nothing was changing then
	read         time.Time // when that was
	readDuration time.Duration
}

func newIndex(dir string) *index {
	return &index{
		dir:         dir,
		files:       make(map[string]indexed),
		thumbprints: make(map[protocol.Thumbprint][]string),
		keys:        make(map[[32]byte][]string),
	}
}

// indexed is what a file held when it was last read.
type indexed struct {
	info       os.FileInfo
	thumbprint protocol.Thumbprint
	key        [32]byte
	broken     bool // it is no account
}

// A change within this time of a look may have come after the look: clocks of
// file systems are coarse, and a file appears before it is written.
const settleTime = 2 * time.Second

func (x *index) byThumbprint(t protocol.Thumbprint) ([]string, error) {
	return lookUp(x, x.thumbprints, t)
}

func (x *index) byKey(key [32]byte) ([]string, error) {
	return lookUp(x, x.keys, key)
}

func lookUp[K comparable](x *index, table map[K][]string, key K) ([]string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.update(false); err != nil {
		return nil, err
	}
	if names := table[key]; len(names) > 0 {
		return slices.Clone(names), nil
	}
	// Look at every file again, but spend no more than a small part of the
	// time on it, however often strangers ask.
	wait := 20 * x.readDuration
	if x.settled {
		wait = max(wait, settleTime)
	}
	if time.Since(x.read) < wait {
		return nil, nil
	}
	err := x.update(true)
	return slices.Clone(table[key]), err
}

// invalidate makes the next look read the folder again.
func (x *index) invalidate() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.modified = time.Time{}
}

// update reads the folder again if it has changed, or in any case if forced.
func (x *index) update(force bool) error {
	info, err := os.Stat(x.dir)
	if errors.Is(err, fs.ErrNotExist) {
		clear(x.files)
		clear(x.thumbprints)
		clear(x.keys)
		x.modified = time.Time{}
		return nil
	}
	if err != nil {
		return err
	}
	if !force && info.ModTime().Equal(x.modified) {
		return nil
	}
	start := time.Now()
	names, err := accountFiles(x.dir)
	if err != nil {
		return err
	}
	settled := start.Sub(info.ModTime()) > settleTime
	present := make(map[string]bool, len(names))
	for _, name := range names {
		present[name] = true
		if !x.updateFile(name, start) {
			settled = false
		}
	}
	for name := range x.files {
		if !present[name] {
			x.forget(name)
		}
	}
	x.modified, x.settled, x.read = info.ModTime(), settled, start
	x.readDuration = time.Since(start)
	return nil
}

// updateFile reads a file if it has changed. It reports whether the file was
// quiet, so that what was read is sure to be all.
func (x *index) updateFile(name string, now time.Time) (settled bool) {
	path := filepath.Join(x.dir, name)
	info, err := os.Stat(path)
	if err != nil {
		x.forget(name)
		return true // removed, or unreadable until the folder changes
	}
	settled = now.Sub(info.ModTime()) > settleTime
	old, known := x.files[name]
	if known && os.SameFile(old.info, info) && old.info.ModTime().Equal(info.ModTime()) && old.info.Size() == info.Size() &&
		(settled || !old.broken) {
		return settled
	}
	x.forget(name)
	account, err := readFile(path)
	var ioError *fs.PathError
	if errors.As(err, &ioError) {
		return false // it may be readable the next time, though nothing shows
	}
	entry := indexed{info: info, broken: true}
	if err == nil {
		err = checkFileName(path, account)
	}
	if err != nil && settled && x.report != nil {
		x.report(err)
	}
	if err == nil {
		entry = indexed{info: info, thumbprint: account.Thumbprint(), key: account.KeyHash()}
		x.thumbprints[entry.thumbprint] = append(x.thumbprints[entry.thumbprint], name)
		x.keys[entry.key] = append(x.keys[entry.key], name)
	}
	x.files[name] = entry
	return settled
}

func (x *index) forget(name string) {
	old, ok := x.files[name]
	if !ok {
		return
	}
	delete(x.files, name)
	if !old.broken {
		without(x.thumbprints, old.thumbprint, name)
		without(x.keys, old.key, name)
	}
}

// without takes the name of a file out of a table.
func without[K comparable](table map[K][]string, key K, name string) {
	names := slices.DeleteFunc(table[key], func(s string) bool { return s == name })
	if len(names) == 0 {
		delete(table, key)
	} else {
		table[key] = names
	}
}
