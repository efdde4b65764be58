package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/protocol/bundle"
)

// maxPassphraseLen bounds what is read of a passphrase file, in bytes.
const maxPassphraseLen = 4096

// readPassphrase reads the first line of the file or, if there is none, asks at
// the terminal without echo: twice, if it is a new passphrase.
func readPassphrase(file, prompt string, isNew bool) (string, error) {
	var (
		passphrase string
		err        error
	)
	if file != "" {
		passphrase, err = firstLine(file)
	} else {
		passphrase, err = ask(prompt, isNew)
	}
	if err != nil {
		return "", err
	}
	if passphrase, err = protocol.NormalizePassphrase(passphrase); err == nil {
		err = bundle.CheckPassphrase(passphrase)
	}
	if err != nil && file != "" {
		err = fmt.Errorf("the first line of %s: %w", file, err)
	}
	if err == nil && isNew && utf8.RuneCountInString(passphrase) < shortPassphrase {
		fmt.Fprintf(os.Stderr, "flatauth: a short passphrase. Anybody who can reach the server can guess at it at home: %d characters or five random words are better\n", shortPassphrase)
	}
	return passphrase, err
}

// shortPassphrase is the length below which a new passphrase is remarked on.
const shortPassphrase = 12

func firstLine(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, maxPassphraseLen+1)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	if len(line) > maxPassphraseLen {
		return "", fmt.Errorf("the first line of %s is longer than %d bytes", path, maxPassphraseLen)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// ask asks at the terminal that controls the process: the standard input may
// be the data.
func ask(prompt string, twice bool) (string, error) {
	tty, err := os.OpenFile(terminalPath, os.O_RDWR, 0)
	if err != nil {
		return "", errors.New("there is no terminal to ask for the passphrase: use --passphrase-file")
	}
	defer tty.Close()
	once := func(prompt string) (string, error) {
		fmt.Fprintf(tty, "%s: ", prompt)
		b, err := term.ReadPassword(int(tty.Fd()))
		fmt.Fprintln(tty)
		return string(b), err
	}
	passphrase, err := once(prompt)
	if err != nil || !twice {
		return passphrase, err
	}
	again, err := once("The same again")
	if err != nil {
		return "", err
	}
	if again != passphrase {
		return "", errors.New("the two passphrases differ: nothing was changed")
	}
	return passphrase, nil
}
