// Gen remakes the certificates in assets/ that the tests' NATS server and its clients present to each other.
//
// Run it from the root of the repository:
//
//	go run ./assets/gen
//
// It makes a new authority each time and forgets its private key, so nobody can issue a certificate that the committed ones
// would trust; therefore all five files change together.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/natty-go/natty/internal/testcerts"
)

// validFor is long because nobody remembers to renew certificates of tests: ten years, leap days included.
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
		// nats is the service's name in docker-compose.yml, and so its host name for other containers.
		"server": {CommonName: "natty test server", Hosts: []string{"localhost", "127.0.0.1", "::1", "nats"}, Server: true},
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

// writeFile makes path readable by everyone, whatever the umask and the mode it had: the server in the container reads its
// key under a user ID that need not be the owner's. These keys protect nothing.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}
