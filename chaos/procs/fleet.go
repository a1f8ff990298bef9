package procs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/natty-go/natty/nattytest"
)

// servers is how many servers there are.
const servers = 3

// Fleet is everything that runs: three servers, workers, and links: one between each
// worker and each server, and two between each two servers.
type Fleet struct {
	*credentials

	Dir     string
	Servers []*Server
	Workers []*Worker
	// Rival is what the workers use instead of natty. Empty: natty.
	Rival string

	routes routes
	host   host
}

// Worker is a process that uses natty, behind links of its own.
type Worker struct {
	*Process
	Role  string
	Links []*nattytest.Link // one to each server
}

// envWorker holds the WorkerConfig of a process that is a worker.
const envWorker = "NATTY_CHAOS_WORKER"

// WorkerConfig is what a worker is told.
type WorkerConfig struct {
	Name, Role string
	Life       int
	Version    int // workers of one role can have different configurations
	Servers    []string
	Files
	Seed  uint64
	Rival string // see Fleet
}

// WorkerAsked returns the configuration of this process if it is a worker.
func WorkerAsked() (cfg WorkerConfig, is bool, err error) {
	text, is := os.LookupEnv(envWorker)
	if is {
		err = json.Unmarshal([]byte(text), &cfg)
	}
	return cfg, is, err
}

// host stands for the test that nattytest's proxies belong to.
type host struct {
	testing.TB // nil: nothing else of it is used
	mu         sync.Mutex
	cleanups   []func()
}

func (h *host) Helper() {}

func (h *host) Cleanup(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cleanups = append(h.cleanups, f)
}

func (h *host) Error(args ...any) { fmt.Fprintln(os.Stderr, args...) }

func (h *host) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// NewFleet prepares three servers with their files in dir. Open: workers do not log in,
// for those that do not know how.
func NewFleet(dir string, open bool) (f *Fleet, err error) {
	f = &Fleet{Dir: dir}
	if f.credentials, err = newCredentials(dir, open); err != nil {
		return nil, err
	}
	var ports [servers][3]int
	var clusterPorts [servers]int
	for i := range ports {
		for j := range ports[i] {
			if ports[i][j], err = reservePort(); err != nil {
				return nil, err
			}
		}
		clusterPorts[i] = ports[i][1]
	}
	nowhere, err := reservePort()
	if err != nil {
		return nil, err
	}
	f.addRoutes(clusterPorts)
	for i, p := range ports {
		if err := f.addServer(i, p, nowhere); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func (f *Fleet) addServer(number int, ports [3]int, nowhere int) error {
	name := fmt.Sprintf("server-%d", number+1)
	file := filepath.Join(f.Dir, name)
	s := &Server{
		Process: &Process{Name: name, out: file + ".out", errors: file + ".err"},
		number:  number, client: ports[0], cluster: ports[1], admin: ports[2],
	}
	s.env = func(int) (string, error) { return envServer + "=" + file + ".conf", nil }
	f.Servers = append(f.Servers, s)
	return os.WriteFile(file+".conf", []byte(s.config(f, nowhere)), 0o600)
}

// Reload makes all servers read their files again.
func (f *Fleet) Reload(ctx context.Context) error {
	for _, s := range f.Servers {
		if err := s.Reload(ctx); err != nil {
			return err
		}
	}
	return nil
}

// URLs are the servers' own addresses.
func (f *Fleet) URLs() (urls []string) {
	for _, s := range f.Servers {
		urls = append(urls, s.URL())
	}
	return urls
}

// AddWorker prepares a worker and its links.
func (f *Fleet) AddWorker(role string, number, version int, seed uint64) *Worker {
	name := fmt.Sprintf("%s-%d", role, number)
	w := &Worker{Role: role}
	var urls []string
	for _, s := range f.Servers {
		link := nattytest.Proxy(&f.host, fmt.Sprintf("127.0.0.1:%d", s.client))
		w.Links = append(w.Links, link)
		urls = append(urls, "tls"+link.URL()[len("nats"):])
	}
	w.Process = &Process{Name: name, out: f.HistoryOf(name), errors: filepath.Join(f.Dir, name+".err")}
	w.env = func(life int) (string, error) {
		text, err := json.Marshal(WorkerConfig{
			Name: name, Role: role, Life: life, Version: version, Servers: urls, Files: f.Files, Seed: seed, Rival: f.Rival,
		})
		return envWorker + "=" + string(text), err
	}
	f.Workers = append(f.Workers, w)
	return w
}

// HistoryOf names the file with the history of a process.
func (f *Fleet) HistoryOf(name string) string { return filepath.Join(f.Dir, name+".jsonl") }

// AwaitHealthy waits until all servers are.
func (f *Fleet) AwaitHealthy(ctx context.Context) error {
	return WaitFor(ctx, "all servers are healthy", func() bool {
		for _, s := range f.Servers {
			if !s.Healthy(ctx) {
				return false
			}
		}
		return true
	})
}

// Heal ends all faults of links and processes: what is dead is started again.
func (f *Fleet) Heal() error {
	var errs []error
	for _, s := range f.Servers {
		f.Rejoin(s)
		s.Signal(syscall.SIGCONT)
		errs = append(errs, s.Start())
	}
	for _, w := range f.Workers {
		for _, l := range w.Links {
			l.Delay(0)
			l.Thaw()
			l.Refuse(false)
		}
		w.Signal(syscall.SIGCONT)
		errs = append(errs, w.Start())
	}
	return errors.Join(errs...)
}

// Close kills everything that is left.
func (f *Fleet) Close() {
	for _, w := range f.Workers {
		w.Kill()
	}
	for _, s := range f.Servers {
		s.Kill()
	}
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	for _, end := range f.host.cleanups {
		end()
	}
	f.host.cleanups = nil
}
