package flatauth

import (
	"context"
	"errors"
	"fmt"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/store"
)

// accounts gives the protocol the accounts of a store that may log in.
type accounts struct {
	store       store.Store
	allow, deny selector
}

// errStore is a store that could not tell whether there is an account.
var errStore = errors.New("the store of accounts failed")

// InteractiveAccount implements protocol.Accounts.
func (a *accounts) InteractiveAccount(ctx context.Context, name string) (*protocol.Account, error) {
	account, err := a.store.ByName(ctx, name)
	return a.admit(account, err, store.Interactive)
}

// CertificateAccount implements protocol.Accounts.
func (a *accounts) CertificateAccount(ctx context.Context, t protocol.Thumbprint) (*protocol.Account, error) {
	account, err := a.store.ByThumbprint(ctx, t)
	return a.admit(account, err, store.Certificate)
}

// A refusal is an account that exists and may not log in. To the protocol it is
// an unknown one; the log says more.
type refusal struct{ account, reason string }

func (r *refusal) Error() string        { return r.reason }
func (r *refusal) Is(target error) bool { return target == protocol.ErrUnknownAccount }

// admit lets an account log in, or says for the log why not. To the client all
// of these accounts do not exist.
func (a *accounts) admit(account *store.Account, err error, typ store.Type) (*protocol.Account, error) {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, protocol.ErrUnknownAccount
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errStore, err)
	case account.Type != typ:
		return nil, &refusal{account.Name, fmt.Sprintf("it is of type %s", account.Type)}
	case account.Disabled:
		return nil, &refusal{account.Name, "disabled"}
	case !a.allow.empty() && !a.allow.selects(account.Name):
		return nil, &refusal{account.Name, "not allowed here"}
	case a.deny.selects(account.Name):
		return nil, &refusal{account.Name, "denied here"}
	}
	return &protocol.Account{Name: account.Name, Certificate: account.Certificate, Bundle: account.Bundle}, nil
}

// A selector is a Selection that has been provisioned.
type selector struct{ accounts, zones patterns }

func newSelector(s Selection) (sel selector, err error) {
	if sel.accounts, err = newPatterns(s.Accounts); err != nil {
		return sel, err
	}
	sel.zones, err = newPatterns(s.Zones)
	return sel, err
}

func (s selector) empty() bool { return len(s.accounts) == 0 && len(s.zones) == 0 }

func (s selector) selects(name string) bool {
	zone := protocol.Zone(name)
	return s.accounts.match(name) || zone != "" && s.zones.match(zone)
}
