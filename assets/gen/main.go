// Gen makes new certificates in assets/ for the NATS server of the tests and its
// clients.
//
// Run it from the root of the repository:
//
//	go run ./assets/gen
//
// Each run makes a new authority and discards its private key, so nobody can issue a
// certificate that the committed authority vouches for. Therefore all five files change
// together.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/natty-go/natty/internal/testcerts"
)

// validFor is ten years, leap days included, because nobody remembers to renew the
// certificates of tests.
const validFor = 3653 * 24 * time.Hour

func main() {
	out := flag.String("out", "assets", "the folder to write to, which must exist")
	flag.Parse()
	if err := write(*out); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// write makes ca.crt, server.crt, server.key, client.crt and client.key in dir.
func write(dir string) error {
	ca, err := testcerts.NewCA("natty test CA", validFor)
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": ca.PEM()}
	for name, leaf := range map[string]testcerts.Leaf{
		// Other containers reach the server as nats, its service name in
		// docker-compose.yml.
		"server": {
			CommonName: "natty test server", Hosts: []string{"localhost", "127.0.0.1", "::1", "nats"}, Server: true,
		},
		"client": {CommonName: "natty test client", Client: true},
	} {
		if files[name+".crt"], files[name+".key"], err = ca.Issue(leaf); err != nil {
			return err
		}
	}
	for name, pem := range files {
		if err := writeFile(filepath.Join(dir, name), pem); err != nil {
			return err
		}
	}
	return nil
}

// writeFile makes path readable by everyone, whatever the umask and its mode before.
// The server in the container may run under another user ID than the owner's, and must
// read its key. These keys protect nothing.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}
