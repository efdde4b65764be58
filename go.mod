module github.com/flatauth/caddy-flatauth

go 1.26.0

require (
	github.com/rogpeppe/go-internal v1.16.0
	golang.org/x/net v0.58.0
	golang.org/x/text v0.42.0
	software.sslmate.com/src/go-pkcs12 v0.7.4
)

require golang.org/x/crypto v0.57.0 // indirect
