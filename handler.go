package flatauth

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	flatcaddyfile "github.com/flatauth/caddy-flatauth/caddyfile"
	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/store"
)

func init() {
	caddy.RegisterModule(&Handler{})
}

// Handler logs a client in by the flat protocol and hands the decrypted stream
// to the handlers after it, in the same route. Until the client has proved who
// it is, none of them runs.
//
// After the login these placeholders tell who it is: {l4.flatauth.account},
// {l4.flatauth.zone}, {l4.flatauth.type}, {l4.flatauth.suite},
// {l4.flatauth.certificate.thumbprint}, {l4.flatauth.certificate.subject} and
// other fields of the certificate.
type Handler struct {
	// Store is where the accounts are. Default: the directory store in Caddy's
	// data directory.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=flatauth.stores inline_key=source"`

	// MaxPacket is the largest plaintext of a packet, in bytes, that the server
	// takes: 64 to 16777216. A client can lower it for itself. Default: 65536.
	MaxPacket int `json:"max_packet,omitempty"`

	// HandshakeTimeout is how long a client may take to say who it is, and
	// the store to find it. Default: 10s.
	HandshakeTimeout caddy.Duration `json:"handshake_timeout,omitempty"`

	// ProofTimeout is how long a client may take after that to prove it, while
	// a small device derives the key of its passphrase. Default: 60s.
	ProofTimeout caddy.Duration `json:"proof_timeout,omitempty"`

	// IdleTimeout ends a session in which no data has passed, either way, for
	// so long. Default: 0, which is never.
	IdleTimeout caddy.Duration `json:"idle_timeout,omitempty"`

	// MaxHandshakes is how many connections may be in the middle of a login at
	// once; more are closed. Each may hold twice MaxPacket. Default: 1024.
	MaxHandshakes int `json:"max_handshakes,omitempty"`

	// Suites are the suites that the server accepts. Default: all, which is
	// classic.
	Suites []string `json:"suites,omitempty"`

	// Allow, if it names anything, is who may log in here. To everybody else
	// the account seems not to exist.
	Allow Selection `json:"allow,omitzero"`

	// Deny is who may not log in here, though they may be allowed.
	Deny Selection `json:"deny,omitzero"`

	config *protocol.ServerConfig
	logger *zap.Logger

	handshakes atomic.Int64
	crowded    *zap.Logger // for what strangers could fill the log with
	misplaced  sync.Once
}

// Selection selects accounts, by name or by zone.
type Selection struct {
	// Accounts are names, zone included. A * stands for any characters.
	Accounts []string `json:"accounts,omitempty"`

	// Zones are zones, which are the part of a name after its last @. A *
	// stands for any characters.
	Zones []string `json:"zones,omitempty"`
}

// IsZero reports whether nothing is selected.
func (s Selection) IsZero() bool { return len(s.Accounts) == 0 && len(s.Zones) == 0 }

const defaultMaxHandshakes = 1024

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.handlers.flatauth",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	h.crowded = h.logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, 10*time.Second, 1, 0)
	}))
	if h.StoreRaw == nil {
		h.StoreRaw = json.RawMessage(`{"source": "directory"}`)
	}
	module, err := ctx.LoadModule(h, "StoreRaw")
	if err != nil {
		return fmt.Errorf("loading the store: %w", err)
	}
	accountStore, ok := module.(store.Store)
	if !ok {
		return fmt.Errorf("%T is not a store of accounts", module)
	}

	if h.MaxPacket != 0 && (h.MaxPacket < protocol.MinMaxPacket || h.MaxPacket > protocol.MaxMaxPacket) {
		return fmt.Errorf("max_packet is %d bytes: it can be %d to %d", h.MaxPacket, protocol.MinMaxPacket, protocol.MaxMaxPacket)
	}
	if h.MaxHandshakes < 0 {
		return fmt.Errorf("max_handshakes is negative: %d", h.MaxHandshakes)
	}
	if h.MaxHandshakes == 0 {
		h.MaxHandshakes = defaultMaxHandshakes
	}
	for name, d := range map[string]caddy.Duration{
		"handshake_timeout": h.HandshakeTimeout,
		"proof_timeout":     h.ProofTimeout,
		"idle_timeout":      h.IdleTimeout,
	} {
		if d < 0 {
			return fmt.Errorf("%s is negative: %v", name, time.Duration(d))
		}
	}
	for _, suite := range h.Suites {
		if !slices.Contains(protocol.Suites(), suite) {
			return fmt.Errorf("no suite '%s': there is %s", suite, strings.Join(protocol.Suites(), ", "))
		}
	}

	accounts := &accounts{store: accountStore}
	if accounts.allow, err = newSelector(h.Allow); err != nil {
		return fmt.Errorf("allow: %w", err)
	}
	if accounts.deny, err = newSelector(h.Deny); err != nil {
		return fmt.Errorf("deny: %w", err)
	}
	decoys, err := loadDecoys(ctx)
	if err != nil {
		return fmt.Errorf("the secret of decoys in Caddy's storage: %w", err)
	}
	h.config = &protocol.ServerConfig{
		Accounts:      accounts,
		Decoys:        decoys,
		MaxPacket:     h.MaxPacket,
		FlightTimeout: time.Duration(h.HandshakeTimeout),
		ProofTimeout:  time.Duration(h.ProofTimeout),
	}
	return nil
}

// loadDecoys reads the secret of decoys from Caddy's storage, so that every
// instance that shares the storage makes the same ones. The first makes it.
func loadDecoys(ctx caddy.Context) (*protocol.Decoys, error) {
	const key = "flatauth/decoys.key"
	storage := ctx.Storage()
	secret, err := storage.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		if err := storage.Lock(ctx, key); err != nil {
			return nil, err
		}
		defer storage.Unlock(ctx, key)
		secret, err = storage.Load(ctx, key) // another may have been first
		if errors.Is(err, fs.ErrNotExist) {
			secret = make([]byte, 32)
			rand.Read(secret)
			err = storage.Store(ctx, key, secret)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(secret) < 32 {
		return nil, fmt.Errorf("%s has %d bytes, not 32: remove it to have a new one made", key, len(secret))
	}
	return protocol.NewDecoys(secret)
}

// Handle logs the client in and runs the next handlers on the decrypted stream.
func (h *Handler) Handle(cx *layer4.Connection, next layer4.Handler) error {
	if err := misplaced(cx); err != nil {
		// Whoever connects causes this, but only the operator can mend it.
		h.misplaced.Do(func() { h.logger.Error("flatauth cannot work here", zap.Error(err)) })
		return nil
	}
	if h.handshakes.Add(1) > int64(h.MaxHandshakes) {
		h.handshakes.Add(-1)
		h.crowded.Warn("too many logins at once; connection closed",
			zap.String("remote_ip", remoteIP(cx)), zap.Int("max_handshakes", h.MaxHandshakes))
		return nil
	}

	start := time.Now()
	conn := protocol.Server(transport{cx}, h.config)
	// The handshake has its own timeouts; cx.Context, unlike the context of
	// the configuration, lives as long as the connection.
	err := conn.HandshakeContext(cx.Context)
	h.handshakes.Add(-1)
	if err != nil {
		h.logFailure(cx, err)
		conn.Close()
		return nil // logged; the routes after this one must not run
	}

	// What the matchers had read came before the first packet, so all of it has
	// been taken. If any were left, layer4 would replay it, encrypted as it is,
	// in front of the decrypted stream: cx.Wrap keeps the buffer.
	if n := len(cx.MatchingBytes()); n > 0 {
		conn.Close()
		return fmt.Errorf("%d bytes from before the login are left", n)
	}
	s := newSession(cx, conn, h.logger, time.Duration(h.IdleTimeout))
	s.logLogin(time.Since(start))
	setPlaceholders(cx, conn.ConnectionState())

	err = next.Handle(cx.Wrap(s))
	// Nobody closes what a handler has wrapped, and nobody tells when the
	// handlers of a later route are done with it. So a session ends with its
	// route.
	if err == nil && !s.touched.Load() {
		err = errUntaken
	}
	s.finish(err)
	return err
}

// errUntaken is a route that logs clients in and then has nothing for them.
var errUntaken = errors.New("no handler took the decrypted stream: what is to happen after the login goes into the same route, behind flatauth")

// misplaced says why the handler cannot work with a connection at all.
func misplaced(cx *layer4.Connection) error {
	network := cx.LocalAddr().Network()
	if strings.HasPrefix(network, "udp") || strings.HasPrefix(network, "ip") || network == "unixgram" {
		return fmt.Errorf("the flat protocol needs a stream, such as TCP, and this is %s: take flatauth out of the routes of %s", network, cx.LocalAddr())
	}
	if cx.Context.Value(caddy.CtxKey("listener")) != nil {
		return errors.New("flatauth does not work in the listener wrapper 'layer4', which may hand the bytes of one connection to another: use the layer4 app with a proxy to the HTTP server instead")
	}
	return nil
}

// logFailure logs a login that failed. Operators feed these lines to fail2ban:
// the message and the field remote_ip are part of the documentation. What did
// not even begin as a login is for debugging only: health checks and scanners
// would fill the log.
func (h *Handler) logFailure(cx *layer4.Connection, err error) {
	if err == io.EOF || errors.Is(err, protocol.ErrNotFlat) || errors.Is(err, net.ErrClosed) {
		h.logger.Debug("not a login", zap.String("remote_ip", remoteIP(cx)), zap.Error(err))
		return
	}
	fields := []zap.Field{zap.String("remote_ip", remoteIP(cx)), zap.Stringer("remote", cx.RemoteAddr())}
	var login *protocol.LoginError
	if errors.As(err, &login) {
		err = login.Err
		account := login.Account
		var refused *refusal
		if errors.As(err, &refused) {
			account = refused.account
		}
		fields = append(fields, zap.String("account", account))
		if login.Interactive {
			fields = append(fields, zap.String("type", string(store.Interactive)))
		} else {
			fields = append(fields, zap.String("type", string(store.Certificate)), zap.Stringer("thumbprint", login.Thumbprint))
		}
	}
	fields = append(fields, zap.String("reason", failureReason(err)))
	if errors.Is(err, errStore) {
		h.logger.Error("login failed", append(fields, zap.Error(err))...)
		return
	}
	h.logger.Info("login failed", fields...)
}

func failureReason(err error) string {
	switch {
	case errors.Is(err, errStore):
		return "the account could not be looked up"
	case errors.Is(err, protocol.ErrAuthentication):
		return "wrong passphrase or key, or altered on the way"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by the client before it had proved who it is; so does one with a wrong passphrase"
	}
	return err.Error()
}

func remoteIP(cx *layer4.Connection) string {
	host, _, err := net.SplitHostPort(cx.RemoteAddr().String())
	if err != nil {
		return cx.RemoteAddr().String()
	}
	return host
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	flatauth {
//		store <name> [<args...>]
//		max_packet <size>
//		handshake_timeout <duration>
//		proof_timeout <duration>
//		idle_timeout <duration>
//		max_handshakes <count>
//		suites <names...>
//		allow {
//			accounts <patterns...>
//			zones <patterns...>
//		}
//		deny {
//			accounts <patterns...>
//			zones <patterns...>
//		}
//	}
//
// "allow <patterns...>" is short for a block with accounts only, and so is deny.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the name
	if d.NextArg() {
		return d.ArgErr()
	}
	return flatcaddyfile.Block(d, flatcaddyfile.Options{
		"store":             flatcaddyfile.Module(&h.StoreRaw, "flatauth.stores", "source"),
		"max_packet":        flatcaddyfile.Size(&h.MaxPacket),
		"handshake_timeout": flatcaddyfile.Duration(&h.HandshakeTimeout),
		"proof_timeout":     flatcaddyfile.Duration(&h.ProofTimeout),
		"idle_timeout":      flatcaddyfile.Duration(&h.IdleTimeout),
		"max_handshakes":    flatcaddyfile.Int(&h.MaxHandshakes),
		"suites":            flatcaddyfile.List(&h.Suites),
		"allow":             h.Allow.unmarshalCaddyfile,
		"deny":              h.Deny.unmarshalCaddyfile,
	})
}

func (s *Selection) unmarshalCaddyfile(d *caddyfile.Dispenser) error {
	s.Accounts = d.RemainingArgs()
	short := len(s.Accounts) > 0
	err := flatcaddyfile.Block(d, flatcaddyfile.Options{
		"accounts": func(d *caddyfile.Dispenser) error {
			if short {
				return d.Err("accounts are given twice")
			}
			return flatcaddyfile.List(&s.Accounts)(d)
		},
		"zones": flatcaddyfile.List(&s.Zones),
	})
	if err == nil && s.IsZero() {
		return d.ArgErr()
	}
	return err
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ layer4.NextHandler    = (*Handler)(nil)
)
