package flatauth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/store"
)

const placeholderPrefix = "l4.flatauth."

// stateVar is the variable of a connection that holds its latest login.
const stateVar = "flatauth_state"

// setPlaceholders tells the handlers that follow who has logged in. Of logins
// inside each other, the inner one counts.
func setPlaceholders(cx *layer4.Connection, state protocol.ConnectionState) {
	known := cx.GetVar(stateVar) != nil
	cx.SetVar(stateVar, &state)
	if known {
		return
	}
	cx.Replacer().Map(func(key string) (any, bool) {
		field, ok := strings.CutPrefix(key, placeholderPrefix)
		if !ok {
			return nil, false
		}
		state, ok := cx.GetVar(stateVar).(*protocol.ConnectionState)
		if !ok {
			return nil, false
		}
		return placeholder(state, field)
	})
}

func placeholder(state *protocol.ConnectionState, field string) (any, bool) {
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
