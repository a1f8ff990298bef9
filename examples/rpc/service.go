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

	"github.com/nats-io/nats.go/micro"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

// What an instance learns from its environment, beside NATS_URL and the others that setup.Server reads.
const (
	instanceName    = "RPC_INSTANCE"
	instanceSubject = "RPC_SUBJECT"
)

// instance is the whole of each of the two processes: a service that squares numbers until it is told to stop. That is when
// its standard input ends, which it does also when the process that holds the other end dies.
func instance(ctx context.Context, name, subject string, in io.Reader, out io.Writer) (err error) {
	cfg, stopServer, err := setup.Server("rpc-" + name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	client, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()

	// Instances of one service share its requests: each goes to one of them.
	service, err := micro.AddService(client.Conn(), micro.Config{Name: "squares", Version: "1.0.0"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.Stop()) }() // finishes what it has begun
	err = service.AddEndpoint("square", micro.HandlerFunc(func(r micro.Request) { square(name, r) }), micro.WithEndpointSubject(subject))
	if err != nil {
		return err
	}
	if err := client.Conn().Flush(); err != nil { // the server has the subscription
		return err
	}
	fmt.Fprintln(out, "ready")
	_, _ = io.Copy(io.Discard, in) // an error is an end too
	return nil
}

// square answers one request.
func square(name string, r micro.Request) {
	var number wrapperspb.Int64Value
	if err := proto.Unmarshal(r.Data(), &number); err != nil {
		_ = r.Error("400", "not a protobuf message of an Int64Value", nil)
		return
	}
	time.Sleep(2 * time.Millisecond) // the work
	data, err := proto.Marshal(wrapperspb.Int64(number.GetValue() * number.GetValue()))
	if err != nil {
		_ = r.Error("500", "cannot be encoded", nil)
		return
	}
	// Without a connection there is no answer, and the client asks again.
	_ = r.Respond(data, micro.WithHeaders(micro.Headers{"Instance": {name}}))
}

// services is the two processes.
type services struct {
	instances map[string]*process
}

// process is one of them. It lives until its standard input is closed.
type process struct {
	cmd    *exec.Cmd
	input  io.Closer
	killed bool
}

// start starts this program twice again, as instances, and waits until they are ready. When ctx ends they are stopped, and
// killed if they do not heed it.
func start(ctx context.Context, cfg natty.Config, subject string, out io.Writer) (*services, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &services{instances: map[string]*process{}}
	for _, name := range []string{"A", "B"} {
		cmd := exec.CommandContext(ctx, self) //nolint:gosec // this program
		cmd.Env = append(environment(cfg), instanceName+"="+name, instanceSubject+"="+subject)
		cmd.Stderr = os.Stderr
		input, err := cmd.StdinPipe()
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		cmd.Cancel, cmd.WaitDelay = input.Close, 10*time.Second
		output, err := cmd.StdoutPipe()
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		if err := cmd.Start(); err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.instances[name] = &process{cmd: cmd, input: input}
		fmt.Fprintf(out, "%s is process %d\n", name, cmd.Process.Pid)
		if _, err := bufio.NewReader(output).ReadString('\n'); err != nil {
			return nil, errors.Join(ctx.Err(), fmt.Errorf("instance %s has ended: %w", name, err), s.close())
		}
	}
	return s, nil
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

// kill ends an instance without letting it do anything any more.
func (s *services) kill(name string) error {
	s.instances[name].killed = true
	return s.instances[name].cmd.Process.Kill()
}

// close stops what still runs, and waits until it has ended.
func (s *services) close() error {
	var all error
	for name, instance := range s.instances {
		_ = instance.input.Close() // it may be closed already
		if err := instance.cmd.Wait(); err != nil && !instance.killed {
			all = errors.Join(all, fmt.Errorf("instance %s: %w", name, err))
		}
	}
	return all
}
