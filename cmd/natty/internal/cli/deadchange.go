package cli

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/natty-go/natty/cmd/natty/internal/account"
)

// changed is the result of a change, as JSON.
type changed struct {
	DryRun  bool            `json:"dry_run,omitempty"`
	Found   int             `json:"found"`
	Done    int             `json:"done"`
	Foreign int             `json:"left_alone,omitempty"`
	Letters []account.Place `json:"letters,omitempty"` // of a dry run
	Error   string          `json:"error,omitempty"`
}

func (a *app) changeLetters(ctx context.Context, acc *account.Account, subject string, l *letterFlags,
	change *letterChange, dryRun, yes, foreign bool,
) error {
	if dryRun && !a.json {
		return a.listLetters(ctx, acc, subject, l)
	}
	result := changed{DryRun: dryRun}
	places, err := result.collect(ctx, acc, subject, l, !change.foreign || foreign)
	if err != nil {
		return err
	}
	if dryRun {
		result.Letters = places
		return a.printJSON(result)
	}
	if result.Foreign > 0 && !a.json {
		fmt.Fprintf(a.err, "natty: left alone on %s, since natty has not written them: %s; add --foreign to take them too\n",
			printable(subject), plural(result.Foreign, "message", "messages"))
	}
	if len(places) > 0 && !yes {
		ok, err := a.confirm(fmt.Sprintf("%s %s of %s?", change.verb, plural(len(places), "dead letter", "dead letters"), printable(subject)))
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("nothing was %s", change.done)
		}
	}
	progress := newProgress(a, change.doing, len(places))
	result.Done, err = change.f(ctx, acc, subject, places, progress.show)
	progress.end()
	if a.json {
		if err != nil {
			result.Error = oneLine(err.Error())
		}
		if printErr := a.printJSON(result); err == nil {
			err = printErr
		}
		return err
	}
	fmt.Fprintf(a.out, "%s %s.\n", plural(result.Done, "dead letter was", "dead letters were"), change.done)
	return err
}

// collect returns where the letters are that a command is about.
func (c *changed) collect(ctx context.Context, acc *account.Account, subject string, l *letterFlags, foreign bool,
) (places []account.Place, err error) {
	err = l.each(ctx, acc, subject, func(letter account.Letter) error {
		if letter.Foreign && !foreign {
			c.Foreign++
			return nil
		}
		places = append(places, letter.Place)
		return nil
	})
	c.Found = len(places)
	return places, err
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// progress tells how far a change of many letters is: in one line of a terminal that
// changes, else in a line for each tenth.
type progress struct {
	app       *app
	doing     string
	all, last int
	terminal  bool
	next      time.Time
	shown     bool
}

// many is from how many letters on progress is shown.
const many = 50

func newProgress(a *app, doing string, all int) *progress {
	f, ok := a.err.(*os.File)
	return &progress{app: a, doing: doing, all: all, terminal: ok && isTerminal(f)}
}

func (p *progress) show(done int) {
	switch {
	case p.all < many:
	case p.terminal && time.Now().After(p.next):
		p.next = time.Now().Add(100 * time.Millisecond)
		p.shown = true
		fmt.Fprintf(p.app.err, "\r%s: %d of %d", p.doing, done, p.all)
	case !p.terminal && done*10/p.all > p.last:
		p.last = done * 10 / p.all
		fmt.Fprintf(p.app.err, "natty: %s: %d of %d\n", p.doing, done, p.all)
	}
}

func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.app.err, "\r\033[K")
	}
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// completeDead completes the subjects of dead letters.
func (a *app) completeDead(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	acc, end, err := a.account(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer end()
	s, err := acc.Read(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var subjects []string
	for _, d := range s.Dead {
		subjects = append(subjects, d.Subject)
	}
	return subjects, cobra.ShellCompDirectiveNoFileComp
}
