package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natty-go/natty/cmd/natty/internal/account"
)

// letterFlags say which letters a command is about.
type letterFlags struct {
	filter account.Filter
	at     []string
	limit  int
}

func (l *letterFlags) flags(f *pflag.FlagSet) {
	f.StringVar(&l.filter.Origin, "origin", "", "only letters whose message was published on this subject, such as orders.>")
	f.StringVar(&l.filter.Reason, "reason", "", "only letters whose reason contains this, in upper or lower case")
	f.StringVar(&l.filter.Durable, "durable", "", "only letters of this durable")
	f.DurationVar(&l.filter.OlderThan, "older", 0, "only letters that are older than this, such as 36h")
	f.DurationVar(&l.filter.NewerThan, "newer", 0, "only letters that are newer than this, such as 10m")
	f.StringSliceVar(&l.at, "id", nil, "only these letters, as ls shows them, such as DEAD/17")
	f.IntVar(&l.limit, "limit", 0, "at most this many letters, the oldest; 0 is all")
}

func (l *letterFlags) check() error {
	if err := l.filter.Check(); err != nil {
		return usagef("%v", err)
	}
	if l.limit < 0 {
		return usagef("--limit %d is negative; give a number, or 0 for all", l.limit)
	}
	for _, id := range l.at {
		stream, at, ok := strings.Cut(id, "/")
		seq, err := strconv.ParseUint(at, 10, 64)
		if !ok || stream == "" || err != nil {
			return usagef("--id %q is no letter; give the stream and the number, as natty dead ls shows them, such as DEAD/17", id)
		}
		l.filter.Places = append(l.filter.Places, account.Place{Stream: stream, Sequence: seq})
	}
	return nil
}

// each calls f for the letters.
func (l *letterFlags) each(ctx context.Context, acc *account.Account, subject string, f func(account.Letter) error) error {
	n := 0
	for letter, err := range acc.Letters(ctx, subject, l.filter) {
		if err != nil {
			return err
		}
		if err := f(letter); err != nil {
			return err
		}
		if n++; n == l.limit || n == len(l.filter.Places) {
			break
		}
	}
	if missing := len(l.filter.Places) - n; missing > 0 && l.limit == 0 {
		return fmt.Errorf("%d of the letters of --id are not on %q; see those there are with: natty dead ls %s", missing, subject, subject)
	}
	return nil
}

func (a *app) deadLetters() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "List, show, redrive and purge dead letters",
		Long: `Work with dead letters: copies of messages that a consumer could not handle.

SUBJECT is the subject of the dead letters, such as dead.orders or dead.>; without one,
ls counts the dead letters of each subject. Several filters must all match.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("a command is missing: ls, show, redrive or purge")
		},
	}
	cmd.AddCommand(a.deadList(), a.deadShow(), a.deadChange(&redriveLetters), a.deadChange(&purgeLetters))
	return cmd
}

func (a *app) deadList() *cobra.Command {
	var l letterFlags
	cmd := &cobra.Command{
		Use:     "ls [SUBJECT]",
		Aliases: []string{"list"},
		Short:   "List dead letters, oldest first; without SUBJECT, count them",
		Args:    cobra.MaximumNArgs(1),
		RunE: run(func(cmd *cobra.Command, args []string) error {
			acc, end, err := a.letters(cmd.Context(), &l)
			if err != nil {
				return err
			}
			defer end()
			if len(args) == 0 {
				return a.countLetters(cmd.Context(), acc)
			}
			return a.listLetters(cmd.Context(), acc, args[0], &l)
		}),
	}
	l.flags(cmd.Flags())
	cmd.ValidArgsFunction = a.completeDead
	return cmd
}

// letters checks the flags, and connects to the account that has the letters.
func (a *app) letters(ctx context.Context, l *letterFlags) (*account.Account, func(), error) {
	if err := l.check(); err != nil {
		return nil, nil, err
	}
	return a.account(ctx)
}

func (a *app) countLetters(ctx context.Context, acc *account.Account) error {
	s, err := acc.Read(ctx)
	if err != nil {
		return err
	}
	for _, problem := range s.Problems {
		fmt.Fprintln(a.err, "natty: "+oneLine(problem.Text))
	}
	if len(s.Dead) == 0 && s.Lacks(account.UnreadContent) {
		return errors.New("no dead letters were found, in what could be read")
	}
	if a.json {
		return a.printJSON(s.Dead)
	}
	if len(s.Dead) == 0 {
		fmt.Fprintln(a.out, "There are no dead letters.")
		return nil
	}
	rows := [][]string{{"SUBJECT", "STREAM", "LETTERS", "NEWEST", "ITS REASON"}}
	for _, d := range s.Dead {
		rows = append(rows, []string{d.Subject, d.Stream, strconv.FormatUint(d.Count, 10), ago(s.Time, d.Newest), d.Reason})
	}
	a.table(rows)
	return nil
}

func (a *app) listLetters(ctx context.Context, acc *account.Account, subject string, l *letterFlags) error {
	now := time.Now()
	rows := [][]string{{"ID", "AGE", "ORIGIN", "DURABLE", "TRIES", "SIZE", "REASON"}}
	all := []account.Letter{}
	err := l.each(ctx, acc, subject, func(letter account.Letter) error {
		if a.json {
			all = append(all, letter)
			return nil
		}
		rows = append(rows, []string{
			idOf(letter.Place), ago(now, letter.Time), letter.Subject, letter.Durable,
			tries(letter), size(len(letter.Payload)), reasonOf(letter),
		})
		return nil
	})
	switch {
	case err != nil && len(rows) == 1:
		return err
	case a.json:
		return errors.Join(err, a.printJSON(all))
	case len(rows) == 1:
		fmt.Fprintf(a.out, "There are no such dead letters on %s.\n", printable(subject))
		return nil
	}
	a.table(rows)
	return err
}

// oneSubject demands the subject of the letters.
func oneSubject(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("give one subject of dead letters, such as dead.orders, and not %d; see those there are with: natty dead ls", len(args))
	}
	return nil
}

func (a *app) deadShow() *cobra.Command {
	var l letterFlags
	cmd := &cobra.Command{
		Use:   "show SUBJECT",
		Short: "Show dead letters with their headers and payload",
		Args:  oneSubject,
		RunE: run(func(cmd *cobra.Command, args []string) error {
			acc, end, err := a.letters(cmd.Context(), &l)
			if err != nil {
				return err
			}
			defer end()
			all, first := []account.Letter{}, true
			err = l.each(cmd.Context(), acc, args[0], func(letter account.Letter) error {
				if a.json {
					all = append(all, letter)
					return nil
				}
				if !first {
					fmt.Fprintln(a.out)
				}
				first = false
				a.printLetter(letter)
				return nil
			})
			if err == nil && a.json {
				return a.printJSON(all)
			}
			if err == nil && first {
				fmt.Fprintf(a.out, "There are no such dead letters on %s.\n", printable(args[0]))
			}
			return err
		}),
	}
	l.flags(cmd.Flags())
	cmd.ValidArgsFunction = a.completeDead
	return cmd
}

func (a *app) printLetter(l account.Letter) {
	fmt.Fprintf(a.out, "Letter   %s\n", idOf(l.Place))
	fmt.Fprintf(a.out, "Reason   %s\n", oneLine(reasonOf(l)))
	fmt.Fprintf(a.out, "Origin   %s, in stream %s at %d\n", oneLine(l.Subject), oneLine(dash(l.Origin)), l.OriginSeq)
	fmt.Fprintf(a.out, "Durable  %s, %s\n", oneLine(dash(l.Durable)), tries(l))
	if !l.Time.IsZero() {
		fmt.Fprintf(a.out, "Time     %s (%s ago)\n", l.Time.Format(time.RFC3339), ago(time.Now(), l.Time))
	}
	for _, name := range slices.Sorted(maps.Keys(l.Header)) {
		for _, value := range l.Header[name] {
			fmt.Fprintf(a.out, "Header   %s: %s\n", oneLine(name), oneLine(value))
		}
	}
	kind := "text"
	if !l.Payload.IsText() {
		kind = "not text, so shown as hex"
	}
	fmt.Fprintf(a.out, "Payload  %s, %s\n", size(len(l.Payload)), kind)
	for line := range strings.Lines(l.Payload.Dump()) {
		fmt.Fprintf(a.out, "  %s\n", printable(strings.TrimRight(line, "\r\n")))
	}
}

// letterChange is a command that changes letters.
type letterChange struct {
	name, short, long, verb, done, doing string
	foreign                              bool // takes letters that natty has not written
	f                                    func(ctx context.Context, acc *account.Account, subject string, places []account.Place,
		progress account.Progress) (int, error)
}

var redriveLetters = letterChange{
	name: "redrive", verb: "Redrive", done: "redriven", doing: "redriving",
	short: "Put dead letters back for the durable that failed",
	long: `Publish the messages of dead letters again, for the durable that failed, and delete the
letters. A letter that cannot be put back stays, and the error says why.`,
	f: func(ctx context.Context, acc *account.Account, subject string, places []account.Place, p account.Progress) (int, error) {
		return acc.Redrive(ctx, subject, places, p)
	},
}

var purgeLetters = letterChange{
	name: "purge", verb: "Purge", done: "purged", doing: "purging",
	short: "Delete dead letters for good",
	long: `Delete dead letters for good. Messages on SUBJECT that are no dead letters of natty's
are left alone, unless --foreign is given.`,
	foreign: true,
	f: func(ctx context.Context, acc *account.Account, _ string, places []account.Place, p account.Progress) (int, error) {
		return acc.Purge(ctx, places, p)
	},
}

func (a *app) deadChange(change *letterChange) *cobra.Command {
	var l letterFlags
	var dryRun, yes, foreign bool
	cmd := &cobra.Command{
		Use:   change.name + " SUBJECT",
		Short: change.short,
		Long: change.long + `

It first reads the letters, and asks unless --yes is given. What is dead-lettered
meanwhile stays.`,
		Args: oneSubject,
		RunE: run(func(cmd *cobra.Command, args []string) error {
			acc, end, err := a.letters(cmd.Context(), &l)
			if err != nil {
				return err
			}
			defer end()
			return a.changeLetters(cmd.Context(), acc, args[0], &l, change, dryRun, yes, foreign)
		}),
	}
	l.flags(cmd.Flags())
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "only list the letters")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	if change.foreign {
		cmd.Flags().BoolVar(&foreign, "foreign", false, "also messages that natty has not written")
	}
	cmd.ValidArgsFunction = a.completeDead
	return cmd
}

// confirm asks a question. Without a terminal there is nobody to answer it.
func (a *app) confirm(question string) (bool, error) {
	if !isTerminal(a.in) {
		return false, usagef("there is no terminal to ask %q on; add --yes, or --dry-run to only look", question)
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil {
		return false, fmt.Errorf("no answer: %w", err)
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}
