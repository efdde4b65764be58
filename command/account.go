package command

import (
	"context"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/protocol/bundle"
	"github.com/flatauth/caddy-flatauth/store"
	"github.com/flatauth/caddy-flatauth/store/directory"
)

func accountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "account add|import|list|show|disable|enable|remove",
		Short: "Keeps the accounts of people and machines",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(addCommand(), importCommand(), listCommand(), showCommand(),
		changeCommand("disable", "Keeps an account from logging in", func(a *store.Account) { a.Disabled = true }),
		changeCommand("enable", "Lets a disabled account log in again", func(a *store.Account) { a.Disabled = false }),
		removeCommand())
	return cmd
}

func addCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add NAME --store DIR",
		Short: "Adds an account, with a new key",
		Long: `
Adds an account, with a new key.

An interactive account is a person, who will need NAME and the passphrase and
nothing else: the key is kept in the store, protected by the passphrase. It is
asked for at the terminal, or read from the first line of --passphrase-file.

A certificate account is a machine: its key and certificate go into the file
--out, for the machine to keep; the store has the certificate only.`,
		Args: cobra.ExactArgs(1),
	}
	dir := storeFlag(cmd)
	typ := cmd.Flags().String("type", string(store.Interactive), "interactive or certificate")
	key := cmd.Flags().String("key", bundle.P256, "kind of the key: p256, p384 or rsa3072")
	passphraseFile := cmd.Flags().String("passphrase-file", "", "file whose first line is the passphrase")
	cmd.Flags().Bool("plain", false, "make a PKCS#12 that any tool can open (so far the only kind)")
	out := cmd.Flags().String("out", "", "new file for the key and certificate of a certificate account")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		d := directory.Open(*dir)
		name, err := freeName(cmd.Context(), d, args)
		if err != nil {
			return err
		}
		switch store.Type(*typ) {
		case store.Interactive:
			if *out != "" {
				return errors.New("--out is for certificate accounts: the key of an interactive account goes into the store")
			}
			return addInteractive(cmd.Context(), d, name, *key, *passphraseFile)
		case store.Certificate:
			if *out == "" {
				return errors.New("--out is needed: it is where the machine's key and certificate go")
			}
			if *passphraseFile != "" {
				return errors.New("--passphrase-file is for interactive accounts: a machine has no passphrase")
			}
			return addCertificate(cmd.Context(), d, name, *key, *out)
		}
		return fmt.Errorf("--type %s: it is interactive or certificate", *typ)
	})
	return cmd
}

// freeName normalises the NAME argument of an account that is to be made. It
// finds out before any work, and before anybody types a passphrase, whether the
// name is taken.
func freeName(ctx context.Context, s store.Store, args []string) (string, error) {
	name, err := nameArg(args)
	if err != nil {
		return "", err
	}
	switch _, err := s.ByName(ctx, name); {
	case err == nil:
		return "", fmt.Errorf("%w: %s", store.ErrExists, name)
	case !errors.Is(err, store.ErrNotFound):
		return "", err
	}
	return name, nil
}

func addInteractive(ctx context.Context, w *directory.Directory, name, kind, passphraseFile string) error {
	passphrase, err := readPassphrase(passphraseFile, "New passphrase for "+name, true)
	if err != nil {
		return err
	}
	key, cert, err := bundle.NewKey(kind, name)
	if err != nil {
		return err
	}
	der, err := bundle.New(key, cert, passphrase)
	if err != nil {
		return err
	}
	return create(ctx, w, &store.Account{Name: name, Type: store.Interactive, Certificate: cert, Bundle: der})
}

func addCertificate(ctx context.Context, w *directory.Directory, name, kind, out string) error {
	key, cert, err := bundle.NewKey(kind, name)
	if err != nil {
		return err
	}
	// The key first: an account whose key was lost would be of no use.
	if err := writeIdentity(out, key, cert); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("--out: %w; no file is overwritten: choose another name", err)
	} else if err != nil {
		return err
	}
	if err := create(ctx, w, &store.Account{Name: name, Type: store.Certificate, Certificate: cert}); err != nil {
		os.Remove(out)
		return err
	}
	fmt.Printf("its key and certificate are in %s: move it to the machine, which logs in with --identity\n", out)
	return nil
}

func create(ctx context.Context, w *directory.Directory, account *store.Account) error {
	account.Created = time.Now().UTC().Truncate(time.Second)
	if err := w.Create(ctx, account); err != nil {
		return err
	}
	fmt.Printf("added the %s account %s to %s\n", account.Type, account.Name, w)
	return nil
}

func importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import NAME --store DIR [--pkcs12 FILE] [--certificate FILE | --passphrase-file FILE]",
		Short: "Adds an account with a key that exists already",
		Long: `
Adds an account with a key that exists already.

With --pkcs12, a person: the file goes into the store as it is. The certificate
inside is encrypted, so it is given beside it with --certificate, or unlocked
once with the passphrase, which is not kept. The file has to be expensive to
guess at; this makes one that is:

  ` + bundle.OpenSSLLine + `

With --certificate alone, a machine that has its private key already.`,
		Args: cobra.ExactArgs(1),
	}
	dir := storeFlag(cmd)
	pkcs12 := cmd.Flags().String("pkcs12", "", "PKCS#12 file of a person's certificate and private key")
	certificate := cmd.Flags().String("certificate", "", "certificate, in PEM or DER")
	passphraseFile := cmd.Flags().String("passphrase-file", "", "file whose first line is the passphrase of --pkcs12")
	cmd.MarkFlagsMutuallyExclusive("certificate", "passphrase-file")
	cmd.MarkFlagsOneRequired("pkcs12", "certificate")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		d := directory.Open(*dir)
		name, err := freeName(cmd.Context(), d, args)
		if err != nil {
			return err
		}
		account := &store.Account{Name: name, Type: store.Certificate}
		if *pkcs12 != "" {
			account.Type = store.Interactive
			if account.Bundle, err = readBundle(*pkcs12); err != nil {
				return err
			}
		}
		if *certificate != "" {
			account.Certificate, err = readCertificate(*certificate)
			if err == nil && account.Bundle != nil {
				err = checkBundleCertificate(account.Bundle, account.Certificate)
			}
		} else {
			account.Certificate, err = unlock(account.Bundle, *pkcs12, *passphraseFile)
		}
		if err != nil {
			return err
		}
		return create(cmd.Context(), d, account)
	})
	return cmd
}

// readBundle reads a PKCS#12 file that is fit to be given to strangers.
func readBundle(path string) ([]byte, error) {
	der, err := readFile(path)
	if err != nil {
		return nil, err
	}
	err = bundle.CheckStrength(der)
	if errors.Is(err, bundle.ErrWeak) {
		return nil, fmt.Errorf("%s: %w\nThis makes a good one:\n  %s", path, err, bundle.OpenSSLLine)
	}
	if err == nil {
		err = bundle.CheckWork(der)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return der, nil
}

// unlock opens a bundle once, for its certificate.
func unlock(der []byte, path, passphraseFile string) (*x509.Certificate, error) {
	passphrase, err := readPassphrase(passphraseFile, "Passphrase of "+path, false)
	if err != nil {
		return nil, err
	}
	contents, err := bundle.Open(der, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return protocol.AccountCertificate(contents)
}

// checkBundleCertificate refuses a certificate that is not the bundle's, as far
// as can be told without the passphrase: most programs note the SHA-1 of the
// certificate beside the private key.
func checkBundleCertificate(der []byte, cert *x509.Certificate) error {
	p, err := bundle.ReadParameters(der)
	if err != nil {
		return err
	}
	if sum := sha1.Sum(cert.Raw); len(p.LocalKeyID) == len(sum) && string(p.LocalKeyID) != string(sum[:]) {
		return errors.New("the certificate is not the one in the PKCS#12: its SHA-1 is not what is noted beside the private key")
	}
	return nil
}

// A description is an account as list and show print it.
type description struct {
	Name        string     `json:"name"`
	Type        store.Type `json:"type"`
	Disabled    bool       `json:"disabled"`
	Key         string     `json:"key"`
	Thumbprint  string     `json:"thumbprint"`
	KeySHA256   string     `json:"key_sha256"`
	Subject     string     `json:"subject"`
	NotAfter    time.Time  `json:"certificate_not_after"`
	Created     time.Time  `json:"created,omitzero"`
	Bundle      string     `json:"pkcs12,omitempty"`
	Certificate string     `json:"certificate"`
}

func describe(a *store.Account) description {
	d := description{
		Name: a.Name, Type: a.Type, Disabled: a.Disabled, Created: a.Created,
		Thumbprint: a.Thumbprint().String(), Subject: a.Certificate.Subject.String(), NotAfter: a.Certificate.NotAfter,
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw})),
	}
	hash := a.KeyHash()
	d.KeySHA256 = hex.EncodeToString(hash[:])
	if key, err := protocol.CertificateKey(a.Certificate); err == nil {
		d.Key = key.String()
	}
	if a.Bundle != nil {
		if p, err := bundle.ReadParameters(a.Bundle); err == nil {
			parts := []string{}
			for _, derivation := range append(p.Encrypted, p.MAC) {
				parts = append(parts, derivation.String())
			}
			d.Bundle = "plain (" + strings.Join(parts, "; ") + ")"
		}
	}
	return d
}

func (d description) state() string {
	if d.Disabled {
		return "disabled"
	}
	return "enabled"
}

func jsonFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("json", false, "print JSON")
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list --store DIR [--json]",
		Short: "Lists the accounts",
		Args:  cobra.NoArgs,
	}
	dir := storeFlag(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		all := []description{}
		var broken []error
		for account, err := range directory.Open(*dir).List(cmd.Context()) {
			if err != nil {
				broken = append(broken, err)
				continue
			}
			all = append(all, describe(account))
		}
		slices.SortFunc(all, func(a, b description) int { return strings.Compare(a.Name, b.Name) })
		if *asJSON {
			if err := printJSON(all); err != nil {
				return err
			}
			return errors.Join(broken...)
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tTYPE\tSTATE\tKEY\tCREATED")
		for _, d := range all {
			created := "-"
			if !d.Created.IsZero() {
				created = d.Created.Format(time.DateOnly)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Name, d.Type, d.state(), d.Key, created)
		}
		return errors.Join(append(broken, w.Flush())...)
	})
	return cmd
}

func showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show NAME --store DIR [--json]",
		Short: "Shows an account",
		Args:  cobra.ExactArgs(1),
	}
	dir := storeFlag(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		name, err := nameArg(args)
		if err != nil {
			return err
		}
		account, err := directory.Open(*dir).ByName(cmd.Context(), name)
		if err != nil {
			return err
		}
		d := describe(account)
		if *asJSON {
			return printJSON(d)
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		for _, row := range [][2]string{
			{"name", d.Name},
			{"type", string(d.Type)},
			{"state", d.state()},
			{"key", d.Key},
			{"thumbprint", d.Thumbprint},
			{"key sha256", d.KeySHA256},
			{"subject", d.Subject},
			{"certificate ends", d.NotAfter.Format(time.DateOnly)},
			{"pkcs12", d.Bundle},
			{"created", d.Created.Format(time.RFC3339)},
		} {
			if row[1] != "" {
				fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
			}
		}
		return w.Flush()
	})
	return cmd
}

// changeCommand is a command that changes one account.
func changeCommand(name, short string, change func(*store.Account)) *cobra.Command {
	cmd := &cobra.Command{Use: name + " NAME --store DIR", Short: short, Args: cobra.ExactArgs(1)}
	dir := storeFlag(cmd)
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		account, err := nameArg(args)
		if err != nil {
			return err
		}
		err = directory.Open(*dir).Update(cmd.Context(), account, func(a *store.Account) error {
			change(a)
			return nil
		})
		if err == nil {
			fmt.Printf("%sd the account %s\n", name, account)
		}
		return err
	})
	return cmd
}

func removeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "remove NAME --store DIR", Short: "Removes an account for good", Args: cobra.ExactArgs(1)}
	dir := storeFlag(cmd)
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		name, err := nameArg(args)
		if err != nil {
			return err
		}
		if err := directory.Open(*dir).Remove(cmd.Context(), name); err != nil {
			return err
		}
		fmt.Printf("removed the account %s\n", name)
		return nil
	})
	return cmd
}
