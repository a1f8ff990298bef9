package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/natty-go/natty/cmd/natty/internal/account"
	"github.com/natty-go/natty/cmd/natty/internal/screen"
)

func (a *app) top() *cobra.Command {
	var once bool
	var interval time.Duration
	var dead []string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show lag, rates, leaders, locks and dead letters, live",
		Long: `Show what an account is doing, live: each consumer's lag, how many messages it gets in a
second, in flight, delivered again and waiting requests, the age of its oldest message
that is not settled; who leads and who has which lock; dead letters.

Press q to end it. With --once or --json, and where there is no terminal, it looks twice,
one interval apart so that there are rates, prints and ends. NO_COLOR turns colours off;
with TERM=dumb it prints one screen after the other.`,
		Args: cobra.NoArgs,
		RunE: run(func(cmd *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return usagef("--interval %v is too short for the server; give 100ms or more", interval)
			}
			acc, end, err := a.account(cmd.Context(), dead...)
			if err != nil {
				return err
			}
			defer end()
			out, ok := a.out.(*os.File)
			if once || a.json || !ok || !isTerminal(out) {
				return a.topOnce(cmd.Context(), acc, interval)
			}
			return a.topLive(cmd.Context(), acc, interval, out)
		}),
	}
	cmd.Flags().BoolVar(&once, "once", false, "print once, and end")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between two looks")
	cmd.Flags().StringSliceVar(&dead, "dead", nil, "subjects of dead letters, where they are not found by themselves")
	return cmd
}

func (a *app) topOnce(ctx context.Context, acc *account.Account, interval time.Duration) error {
	if _, err := acc.Read(ctx); err != nil {
		return err
	}
	select {
	case <-time.After(interval):
	case <-ctx.Done():
		return ctx.Err()
	}
	s, err := acc.Read(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(s)
	}
	sc := screen.Screen{}
	if out, ok := a.out.(*os.File); ok && isTerminal(out) {
		sc.Colours = colours()
		sc.Width, _, _ = term.GetSize(int(out.Fd()))
	}
	for _, line := range sc.Lines(s, nil) {
		fmt.Fprintln(a.out, line)
	}
	return nil
}

func dumb() bool { return os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" }

func colours() bool { return os.Getenv("NO_COLOR") == "" && !dumb() }

// look is what was read last.
type look struct {
	snapshot *account.Snapshot
	trouble  error
}

func (a *app) topLive(ctx context.Context, acc *account.Account, interval time.Duration, out *os.File) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	looks := make(chan look)
	go func() {
		for ctx.Err() == nil {
			s, err := acc.Read(ctx)
			select {
			case looks <- look{s, err}:
			case <-ctx.Done():
			}
			select {
			case <-time.After(interval):
			case <-ctx.Done():
			}
		}
	}()
	if !dumb() {
		restore, err := a.takeTerminal(out, stop)
		if err != nil {
			return err
		}
		defer restore()
	}
	return showLooks(ctx, looks, out)
}

// takeTerminal takes the whole screen, and calls stop when q or Ctrl-C is pressed.
func (a *app) takeTerminal(out *os.File, stop func()) (restore func(), err error) {
	restoreKeys := func() {}
	if isTerminal(a.in) {
		state, err := term.MakeRaw(int(a.in.Fd()))
		if err != nil {
			return nil, err
		}
		restoreKeys = func() { _ = term.Restore(int(a.in.Fd()), state) }
		go func() { // ends with the program
			buf := make([]byte, 16)
			for {
				n, err := a.in.Read(buf)
				if err != nil || strings.ContainsAny(string(buf[:n]), "qQ\x03\x04") {
					stop()
					return
				}
			}
		}()
	}
	fmt.Fprint(out, "\033[?1049h\033[?25l")
	return func() {
		fmt.Fprint(out, "\033[?25h\033[?1049l")
		restoreKeys()
	}, nil
}

// showLooks draws each look, and draws it again when the window has another size.
func showLooks(ctx context.Context, looks <-chan look, out *os.File) error {
	var now look
	drawn := screen.Screen{}
	resized := time.NewTicker(200 * time.Millisecond)
	defer resized.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case next := <-looks:
			if errors.Is(next.trouble, context.Canceled) {
				return nil
			}
			if now.trouble = next.trouble; next.snapshot != nil {
				now.snapshot = next.snapshot
			}
		case <-resized.C:
			if dumb() || sizeOf(out) == drawn {
				continue
			}
		}
		drawn = sizeOf(out)
		draw(out, drawn, now)
	}
}

func sizeOf(out *os.File) screen.Screen {
	sc := screen.Screen{Width: 80, Height: 24, Colours: colours()}
	if w, h, err := term.GetSize(int(out.Fd())); err == nil && w > 0 && h > 0 {
		sc.Width, sc.Height = w, h
	}
	return sc
}

func draw(out *os.File, sc screen.Screen, now look) {
	if now == (look{}) {
		return
	}
	if dumb() {
		sc.Height = 0
		fmt.Fprintln(out, strings.Join(sc.Lines(now.snapshot, now.trouble), "\n")+"\n")
		return
	}
	fmt.Fprint(out, "\033[H"+strings.Join(sc.Lines(now.snapshot, now.trouble), "\033[K\r\n")+"\033[K\033[J")
}
