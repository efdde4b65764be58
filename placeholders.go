package flatauth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/store"
)

const placeholderPrefix = "l4.flatauth."

// setPlaceholders tells the handlers that follow who has logged in.
func setPlaceholders(repl *caddy.Replacer, state protocol.ConnectionState) {
	repl.Map(func(key string) (any, bool) {
		field, ok := strings.CutPrefix(key, placeholderPrefix)
		if !ok {
			return nil, false
		}
		switch field {
		case "account":
			return state.Account, true
		case "zone":
			return protocol.Zone(state.Account), true
		case "type":
			if state.Interactive {
				return string(store.Interactive), true
			}
			return string(store.Certificate), true
		case "suite":
			return state.Suite, true
		}
		if field, ok := strings.CutPrefix(field, "certificate."); ok {
			return certificateField(state.Certificate, field)
		}
		return nil, false
	})
}

// certificateField is a field of the account's certificate, by the name that
// caddy-l4 gives it for TLS client certificates where that has one.
func certificateField(cert *x509.Certificate, field string) (any, bool) {
	switch field {
	case "thumbprint", "fingerprint":
		return thumbprint(cert).String(), true
	case "subject":
		return cert.Subject.String(), true
	case "subject.common_name":
		return cert.Subject.CommonName, true
	case "issuer":
		return cert.Issuer.String(), true
	case "issuer.common_name":
		return cert.Issuer.CommonName, true
	case "serial":
		return cert.SerialNumber.String(), true
	case "certificate_pem":
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), true
	case "certificate_der_base64":
		return base64.StdEncoding.EncodeToString(cert.Raw), true
	}
	return nil, false
}

func thumbprint(cert *x509.Certificate) protocol.Thumbprint { return sha256.Sum256(cert.Raw) }
