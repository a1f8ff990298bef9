package procs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// envServer names the configuration file of a process that is a server.
const envServer = "NATTY_CHAOS_SERVER"

// Server is a process of the cluster.
type Server struct {
	*Process
	number                 int
	client, cluster, admin int // ports
}

// config is the server's configuration file. The address that it advertises to other
// servers is one where nobody listens, so that they use the configured routes alone.
func (s *Server) config(f *Fleet, nowhere int) string {
	var others []string
	for _, link := range f.routes[s.number] {
		if link != nil {
			others = append(others, fmt.Sprintf("%q", link.URL()))
		}
	}
	c := f.credentials
	return fmt.Sprintf(`server_name: %q
listen: "127.0.0.1:%d"
http: "127.0.0.1:%d"
log_file: %q
logtime: true
jetstream { store_dir: %q }
tls { cert_file: %q, key_file: %q, ca_file: %q, verify: %t }
cluster { name: chaos, listen: "127.0.0.1:%d", cluster_advertise: "127.0.0.1:%d", no_advertise: true, routes: [%s] }
include %q
`,
		s.Name, s.client, s.admin, filepath.Join(f.Dir, s.Name+".log"), filepath.Join(f.Dir, s.Name),
		c.serverCert, c.serverCert, c.CA, c.Cert != "", s.cluster, nowhere, strings.Join(others, ", "),
		filepath.Base(c.users))
}

// ServeIfAsked runs a server if the environment asks for it, until it is told to stop.
func ServeIfAsked() (was bool, err error) {
	file, is := os.LookupEnv(envServer)
	if !is {
		return false, nil
	}
	o, err := server.ProcessConfigFile(file)
	if err != nil {
		return true, err
	}
	srv, err := server.NewServer(o)
	if err != nil {
		return true, err
	}
	srv.ConfigureLogger()
	srv.Start() // it stops at SIGTERM, and reads its files again at SIGHUP
	if !srv.ReadyForConnections(time.Minute) {
		return true, errors.New("the server accepts no connections")
	}
	srv.WaitForShutdown()
	return true, nil
}

// URL is where clients reach the server, without a proxy.
func (s *Server) URL() string { return fmt.Sprintf("tls://127.0.0.1:%d", s.client) }

// Healthy reports whether the server's health endpoint says so: it runs, and its
// replicas have caught up.
func (s *Server) Healthy(ctx context.Context) bool {
	return s.ask(ctx, "healthz", nil) == nil
}

// ask asks the server's monitoring endpoint.
func (s *Server) ask(ctx context.Context, what string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet,
		fmt.Sprintf("http://127.0.0.1:%d/%s", s.admin, what), http.NoBody)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

// loaded returns when the server has read its files, and zero if it does not say.
func (s *Server) loaded(ctx context.Context) time.Time {
	var v struct {
		Loaded time.Time `json:"config_load_time"`
	}
	_ = s.ask(ctx, "varz", &v) // it is asked again
	return v.Loaded
}

// Reload makes the server read its files again. A server that does not run reads them
// when it starts.
func (s *Server) Reload(ctx context.Context) error {
	if !s.Runs() {
		return nil
	}
	asked := time.Now()
	s.Signal(syscall.SIGHUP)
	return WaitFor(ctx, s.Name+" has read its files again", func() bool { return s.loaded(ctx).After(asked) })
}
