package natty

import (
	"bytes"
	"strings"

	"github.com/nats-io/nats.go"
)

// credentials applies the way to log in, after a look into its file.
func credentials(cfg Config, opts *nats.Options) error {
	switch {
	case cfg.User != "":
		return nats.UserInfo(cfg.User, string(cfg.Password))(opts)
	case cfg.Token != "":
		return nats.Token(string(cfg.Token))(opts)
	case cfg.CredsFile != "":
		return credsFile(cfg.CredsFile, opts)
	case cfg.NKeyFile != "":
		return nkeyFile(cfg.NKeyFile, opts)
	}
	return nil
}

// credsFile reads the file again at every login, since credentials get rotated. It does so itself because
// nats.UserCredentials expands ~ and $ in the path, as no other file's here, and takes any text for a JWT: a file
// that holds only a seed would be sent to the server as it is.
func credsFile(file string, opts *nats.Options) error {
	read := func() (*nats.Options, string, error) {
		data, err := readFile("creds_file", file)
		if err != nil {
			return nil, "", err
		}
		// Causes are left out below: they may quote the file.
		wrong := &ConfigError{Field: "creds_file", Value: file, Reason: "is no credentials file; expected a user's JWT and seed, as nsc writes them"}
		var user nats.Options
		if nats.UserCredentialBytes(data)(&user) != nil {
			return nil, "", wrong
		}
		jwt, err := user.UserJWT()
		if err != nil || strings.Count(jwt, ".") != 2 {
			return nil, "", wrong
		}
		if _, err := user.SignatureCB([]byte("nonce")); err != nil {
			return nil, "", wrong
		}
		return &user, jwt, nil
	}
	if _, _, err := read(); err != nil {
		return err
	}
	jwt := func() (string, error) {
		_, jwt, err := read()
		return jwt, err
	}
	sign := func(nonce []byte) ([]byte, error) {
		user, _, err := read()
		if err != nil {
			return nil, err
		}
		return user.SignatureCB(nonce)
	}
	return nats.UserJWT(jwt, sign)(opts)
}

func nkeyFile(file string, opts *nats.Options) error {
	data, err := readFile("nkey_file", file)
	if err != nil {
		return err
	}
	if bytes.Contains(data, []byte("BEGIN NATS USER JWT")) {
		return &ConfigError{Field: "nkey_file", Value: file, Reason: "holds a user's JWT and seed; set creds_file to it instead"}
	}
	opt, err := nats.NkeyOptionFromSeed(file)
	if err != nil {
		return &ConfigError{Field: "nkey_file", Value: file, Reason: "holds no nkey seed of a user; expected a line that starts with SU"}
	}
	return opt(opts)
}
