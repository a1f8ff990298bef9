// Package cli is the commands of natty: their flags, their output and their exit codes.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/account"
	"github.com/natty-go/natty/cmd/natty/internal/child"
	"github.com/natty-go/natty/internal/subject"
)

// The exit codes of every command but lead and lock, which pass on the exit code of
// the command that they run.
const (
	exitFailure = 1
	exitUsage   = 2
	// exitNotFound is for a command of natty lead or lock that is not there, as env and
	// timeout have it.
	exitNotFound = 127
)

// app is one run of the program.
type app struct {
	in       *os.File
	out, err io.Writer
	login    login
	json     bool
	verbose  bool
}

// Main runs the command that args name, and returns its exit code.
func Main(args []string, in *os.File, out, errs io.Writer) int {
	a := &app{in: in, out: out, err: errs}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	stops := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as by nohup
		stops = append(stops, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), stops...)
	defer stop()
	return a.exitCode(root.ExecuteContext(ctx))
}

// exitCode prints an error, one line for each that is joined in it.
func (a *app) exitCode(err error) int {
	if err == nil {
		return 0
	}
	if quiet, ok := errors.AsType[*exitError](err); ok {
		return quiet.code
	}
	ran, ok := errors.AsType[*runError](err)
	if ok {
		err = ran.err
	}
	for _, one := range apart(err) {
		fmt.Fprintln(a.err, "natty: "+oneLine(strings.TrimPrefix(one.Error(), "natty: ")))
	}
	_, config := errors.AsType[*natty.ConfigError](err)
	_, usage := errors.AsType[*usageError](err)
	if !ok || config || usage {
		fmt.Fprintln(a.err, "natty: see natty --help, or natty COMMAND --help")
		return exitUsage
	}
	if _, ok := errors.AsType[*child.NotFoundError](err); ok {
		return exitNotFound
	}
	return exitFailure
}

// runError is the error of a command that was called as it should be. Every other error
// is about how the command was called.
type runError struct{ err error }

func (e *runError) Error() string { return e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

// usageError is a mistake in the flags or arguments that the command itself has found.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// exitError ends the program with a code, without another word.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// joined is the type of what errors.Join returns. The errors in one of fmt.Errorf are part
// of its text.
var joined = reflect.TypeOf(errors.Join(errors.ErrUnsupported))

// apart returns the errors that are joined in err.
func apart(err error) []error {
	if several, ok := err.(interface{ Unwrap() []error }); ok && reflect.TypeOf(err) == joined {
		var all []error
		for _, one := range several.Unwrap() {
			all = append(all, apart(one)...)
		}
		return all
	}
	return []error{err}
}

// oneLine makes one line of a text, without what would change the terminal.
func oneLine(s string) string {
	s = strings.NewReplacer("\r\n", "; ", "\n", "; ", "\t", " ").Replace(strings.TrimSpace(s))
	return printable(s)
}

// run makes a RunE whose errors are known to be the command's own.
func run(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f(cmd, args); err != nil {
			return &runError{err}
		}
		return nil
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "natty",
		Short: "Work with NATS JetStream: a dev server, leaders, dead letters, and what is stuck",
		Long: `natty works with NATS JetStream and with what natty's services do on it.

It finds the server as the nats command does: by --server or NATS_URL, by --context or
the context selected with "nats context select", else on this machine.

Exit codes: 0 for success, 1 for failure and for findings, 2 for wrong usage. natty lead
and natty lock pass on the exit code of the command that they run.`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return fmt.Errorf("there is no command %q%s", args[0], hint)
		},
		SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("a command is missing")
		},
	}
	root.SetVersionTemplate("natty {{.Version}}\n")
	flags := root.PersistentFlags()
	a.login.flags(flags)
	flags.BoolVar(&a.json, "json", false, "print JSON, for scripts")
	flags.BoolVar(&a.verbose, "verbose", false, "log what the library does, to standard error")
	root.AddCommand(a.dev(), a.lead(), a.lock(), a.deadLetters(), a.doctor(), a.top(), a.ui(), guard())
	_ = root.RegisterFlagCompletionFunc("context", completeContexts)
	return root
}

// version is the module's version, or the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "devel " + s.Value[:min(12, len(s.Value))]
		}
	}
	return "devel"
}

// log returns the logger of the library. It has everything with --verbose. Else it has
// the warnings of a command that runs for long; another command's error says it all, and
// a log would spoil the screen of natty top.
func (a *app) log(patient bool) *slog.Logger {
	level := slog.LevelWarn
	switch {
	case a.verbose:
		level = slog.LevelDebug
	case !patient:
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
}

// account connects, and returns the account to read. The caller must call the function
// that is returned.
func (a *app) account(ctx context.Context, dead ...string) (*account.Account, func(), error) {
	for _, d := range dead {
		if wrong := subject.InvalidFilter(d); wrong != "" {
			return nil, nil, usagef("--dead %q %s; give tokens separated by single dots, such as dead.>", d, wrong)
		}
	}
	refusals := &account.Refusals{}
	c, err := a.connect(ctx, false, natty.WithNATSOptions(refusals.Option()))
	if err != nil {
		return nil, nil, err
	}
	return account.New(c, refusals, dead...), func() {
		end, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(end) // nothing is under way
	}, nil
}

// connect connects, and waits for the server no longer than --timeout.
func (a *app) connect(ctx context.Context, patient bool, more ...natty.Option) (*natty.Client, error) {
	if a.login.timeout <= 0 {
		return nil, usagef("--timeout %v is no time to wait for the server; give one such as 5s", a.login.timeout)
	}
	cfg, opts, err := a.login.config()
	if err != nil {
		return nil, err
	}
	if !patient || a.login.timeoutSet() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.login.timeout)
		defer cancel()
	}
	c, err := natty.Connect(ctx, cfg, append(append(opts, more...), natty.WithLogger(a.log(patient)))...)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w (waited %v; set --server, --context or NATS_URL, or wait longer with --timeout)",
			err, a.login.timeout)
	}
	if err != nil {
		err = &loginError{err}
	}
	return c, err
}

// loginError is an error of natty.Connect, which names the settings of a Config. The
// user knows them as flags.
type loginError struct{ err error }

var flagNames = strings.NewReplacer(
	"tls.ca_file", "--tlsca", "tls.cert_file", "--tlscert", "tls.key_file", "--tlskey", "creds_file", "--creds",
	"nkey_file", "--nkey", "servers[", "--server [",
)

func (e *loginError) Error() string { return flagNames.Replace(e.err.Error()) }
func (e *loginError) Unwrap() error { return e.err }
