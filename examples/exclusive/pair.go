package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/natty-go/natty"
)

// pair is the two processes. They write into one pipe, so that what they say is read in the order in which it was said.
type pair struct {
	instances map[string]*process
	lines     *bufio.Scanner
	pipe      *os.File
}

// process is one of them. It lives until its standard input is closed.
type process struct {
	cmd    *exec.Cmd
	input  io.Closer
	killed bool
}

// start starts this program twice again, as instances. When ctx ends they are stopped as by stop, and killed if they do not heed it.
func start(ctx context.Context, cfg natty.Config, stream string, out io.Writer) (*pair, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// The instances have it: what is read ends when both have ended.
	defer writer.Close() //nolint:errcheck // nothing is written here
	p := &pair{instances: map[string]*process{}, lines: bufio.NewScanner(reader), pipe: reader}
	for _, name := range []string{"A", "B"} {
		cmd := exec.CommandContext(ctx, self) //nolint:gosec // this program
		cmd.Env = append(environment(cfg), instanceName+"="+name, instanceStream+"="+stream)
		cmd.Stdout, cmd.Stderr = writer, os.Stderr
		input, err := cmd.StdinPipe()
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		cmd.Cancel, cmd.WaitDelay = input.Close, 10*time.Second
		if err := cmd.Start(); err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.instances[name] = &process{cmd: cmd, input: input}
		fmt.Fprintf(out, "%s is process %d\n", name, cmd.Process.Pid)
	}
	return p, nil
}

// environment is this program's own, with the server that it has started.
func environment(cfg natty.Config) []string {
	env := os.Environ()
	if len(cfg.Servers) == 0 {
		return env
	}
	return append(env, "NATS_URL="+strings.Join(cfg.Servers, ","),
		"NATTY_CA="+cfg.TLS.CAFile, "NATTY_CERT="+cfg.TLS.CertFile, "NATTY_KEY="+cfg.TLS.KeyFile)
}

// follow passes on what the instances write until there is enough of it. Its error says that both have ended before that.
func (p *pair) follow(note func(name, what string), enough func() bool) error {
	for !enough() {
		if !p.lines.Scan() {
			return errors.Join(errors.New("both instances have ended"), p.lines.Err())
		}
		name, what, _ := strings.Cut(p.lines.Text(), " ")
		note(name, what)
	}
	return nil
}

// stop tells an instance to stop, as a service is told. It does not wait for it.
func (p *pair) stop(name string) error { return p.instances[name].input.Close() }

// kill ends an instance without letting it do anything any more.
func (p *pair) kill(name string) error {
	p.instances[name].killed = true
	return p.instances[name].cmd.Process.Kill()
}

// close stops what still runs, and waits until it has ended.
func (p *pair) close() error {
	var all error
	for name, instance := range p.instances {
		_ = instance.input.Close() // it may be closed already
		if err := instance.cmd.Wait(); err != nil && !instance.killed {
			all = errors.Join(all, fmt.Errorf("instance %s: %w", name, err))
		}
	}
	return errors.Join(all, p.pipe.Close())
}
