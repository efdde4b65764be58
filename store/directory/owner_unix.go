//go:build unix

package directory

import (
	"errors"
	"os"
	"syscall"
)

// giveToOwner gives a file that root has made to the owner of the folder.
func giveToOwner(path, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return os.Lchown(path, int(stat.Uid), int(stat.Gid))
}

// syncDir makes a change of the folder's entries durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
