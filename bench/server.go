package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// server is a nats-server process with a store of its own. An embedded server would
// show in the clients' allocations and profiles, and share their garbage collector.
type server struct {
	url    string
	dir    string
	cmd    *exec.Cmd
	output *bytes.Buffer
	ended  chan error
}

const (
	serverTool  = "github.com/nats-io/nats-server/v2" // a tool of go.mod
	startWithin = 20 * time.Second
)

// buildServer returns the path of the binary. The go command builds the version in
// go.mod, and keeps it in its cache.
func buildServer(ctx context.Context) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", serverTool)
	cmd.Stderr = &stderr
	path, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build nats-server with %q: %w; run this inside the repository\n%s", cmd, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(path)), nil
}

func startServer(ctx context.Context) (*server, error) {
	binary, err := buildServer(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "natty-bench-")
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, output: &bytes.Buffer{}, ended: make(chan error, 1)}
	s.cmd = exec.Command(binary, //nolint:gosec,noctx // what was just built; stop ends it in order
		"--jetstream", "--store_dir", dir, "--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", dir)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	go func() { s.ended <- s.cmd.Wait() }()
	if err := s.await(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// await waits for the file in which the server writes its port.
func (s *server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		select {
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("nats-server ended: %w\n%s", err, s.output)
		case <-ctx.Done():
			return fmt.Errorf("nats-server does not come up: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
		files, err := filepath.Glob(filepath.Join(s.dir, "*.ports"))
		if err != nil || len(files) == 0 {
			continue
		}
		data, err := os.ReadFile(files[0])
		if err != nil {
			return err
		}
		var ports struct {
			NATS []string `json:"nats"`
		}
		// A half-written file is not JSON yet.
		if json.Unmarshal(data, &ports) == nil && len(ports.NATS) > 0 {
			s.url = ports.NATS[0]
			return nil
		}
	}
}

// stop ends the process and removes its store.
func (s *server) stop() error {
	if s.cmd.Process.Signal(os.Interrupt) != nil { // it has ended, or the system lacks this signal
		_ = s.cmd.Process.Kill()
	}
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	return os.RemoveAll(s.dir)
}
