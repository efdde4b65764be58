package protocol

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
)

// BenchmarkRecords is the record layer alone: no transport, no copy.
func BenchmarkRecords(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 16 << 10, 64 << 10, 1 << 20} {
		plain := make([]byte, size)
		key := make([]byte, 32)
		b.Run(fmt.Sprintf("classic/seal/%d", size), func(b *testing.B) {
			h := newHalfConn(classic, key, clientToServer)
			buf := make([]byte, 0, size+classicOverhead)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				buf = classic.seal(h, buf[:0], plain)
			}
		})
		b.Run(fmt.Sprintf("classic/both/%d", size), func(b *testing.B) {
			out, in := newHalfConn(classic, key, clientToServer), newHalfConn(classic, key, clientToServer)
			buf := make([]byte, 0, size+classicOverhead)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				buf = classic.seal(out, buf[:0], plain)
				if _, err := classic.open(in, buf, size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPair is a connection over loopback TCP, beside one of crypto/tls.
func BenchmarkPair(b *testing.B) {
	pairs := map[string]func() (net.Conn, net.Conn){
		"classic": func() (net.Conn, net.Conn) {
			return connect(b, setup().clients["p256/certificate"], setup().server)
		},
		"tls13": func() (net.Conn, net.Conn) {
			config := setup().clients["p256/certificate"]
			ct, st := transports(b)
			server := tls.Server(st, &tls.Config{Certificates: []tls.Certificate{{
				Certificate: [][]byte{config.Certificate.Raw}, PrivateKey: config.PrivateKey,
			}}})
			client := tls.Client(ct, &tls.Config{InsecureSkipVerify: true})
			errs := make(chan error, 1)
			go func() { errs <- server.Handshake() }()
			if err := client.Handshake(); err != nil {
				b.Fatal(err)
			}
			if err := <-errs; err != nil {
				b.Fatal(err)
			}
			return client, server
		},
	}
	for _, name := range []string{"classic", "tls13"} {
		for _, size := range []int{64, 64 << 10} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				client, server := pairs[name]()
				defer client.Close()
				defer server.Close()
				done := make(chan error, 1)
				go func() {
					_, err := io.Copy(io.Discard, struct{ io.Reader }{server})
					done <- err
				}()
				data := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := client.Write(data); err != nil {
						b.Fatal(err)
					}
				}
				client.(interface{ CloseWrite() error }).CloseWrite()
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
