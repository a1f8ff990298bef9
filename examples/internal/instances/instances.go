// Package instances runs a program several times over: the processes of a service, to stop, to pause and to kill.
package instances

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

// variable of the environment that tells a process which instance it is.
const variable = "EXAMPLE_INSTANCE"

// Name returns which instance this process is; "" for the program itself, which starts them.
func Name() string { return os.Getenv(variable) }

// UntilTold returns a ctx that ends when an instance is told to stop. That is when in, its standard input, ends, which it
// does also when the process that holds the other end dies.
func UntilTold(ctx context.Context, in io.Reader) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, in) // an error is an end too
		stop()
	}()
	return ctx, stop
}

// Group is the instances. They write into one pipe, so that what they say is read in the order in which it was said.
type Group struct {
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

// Start starts this program again for each of the names. environment is for all of them, beside what setup.Server reads. When
// ctx ends they are stopped as by Stop, and killed if they do not heed that within ten seconds.
func Start(ctx context.Context, cfg natty.Config, out io.Writer, names []string, environment ...string) (*Group, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// The instances have it: what is read ends when all have ended.
	defer writer.Close() //nolint:errcheck // nothing is written here
	g := &Group{instances: map[string]*process{}, lines: bufio.NewScanner(reader), pipe: reader}
	for _, name := range names {
		cmd := exec.CommandContext(ctx, self) //nolint:gosec // this program
		cmd.Env = append(append(os.Environ(), server(cfg)...), environment...)
		cmd.Env = append(cmd.Env, variable+"="+name)
		cmd.Stdout, cmd.Stderr = writer, os.Stderr
		input, err := cmd.StdinPipe()
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		cmd.Cancel, cmd.WaitDelay = input.Close, 10*time.Second
		if err := cmd.Start(); err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.instances[name] = &process{cmd: cmd, input: input}
		fmt.Fprintf(out, "%s is process %d\n", name, cmd.Process.Pid)
	}
	return g, nil
}

// server is how the server that this program has started is reached.
func server(cfg natty.Config) []string {
	if len(cfg.Servers) == 0 {
		return nil
	}
	return []string{
		"NATS_URL=" + strings.Join(cfg.Servers, ","),
		"NATTY_CA=" + cfg.TLS.CAFile, "NATTY_CERT=" + cfg.TLS.CertFile, "NATTY_KEY=" + cfg.TLS.KeyFile,
	}
}

// Follow passes on what the instances write until there is enough of it: the first word of each line, which names the
// instance, and the rest. Its error says that all have ended before that.
func (g *Group) Follow(note func(name, what string), enough func() bool) error {
	for !enough() {
		if !g.lines.Scan() {
			return errors.Join(errors.New("all instances have ended"), g.lines.Err())
		}
		name, what, _ := strings.Cut(g.lines.Text(), " ")
		note(name, what)
	}
	return nil
}

// Stop tells an instance to stop, as a service is told. It does not wait for it.
func (g *Group) Stop(name string) error { return g.instances[name].input.Close() }

// Kill ends an instance without letting it do anything any more.
func (g *Group) Kill(name string) error {
	g.instances[name].killed = true
	return g.instances[name].cmd.Process.Kill()
}

// Signal sends a signal to an instance.
func (g *Group) Signal(name string, s os.Signal) error {
	return g.instances[name].cmd.Process.Signal(s)
}

// Close stops what still runs, and waits until it has ended.
func (g *Group) Close() error {
	var all error
	for _, instance := range g.instances {
		_ = instance.input.Close() // it may be closed already
	}
	for name, instance := range g.instances {
		if err := instance.cmd.Wait(); err != nil && !instance.killed {
			all = errors.Join(all, fmt.Errorf("instance %s: %w", name, err))
		}
	}
	return errors.Join(all, g.pipe.Close())
}
