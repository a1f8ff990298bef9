// Command chaos proves natty's promises with real processes and real faults. See
// README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/natty-go/natty/chaos/check"
	"github.com/natty-go/natty/chaos/nemesis"
	"github.com/natty-go/natty/chaos/procs"
	"github.com/natty-go/natty/chaos/rivals"
	"github.com/natty-go/natty/chaos/timeline"
	"github.com/natty-go/natty/chaos/work"
)

func main() {
	if child() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := chaos(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// child does what this process was started for by another one of this program.
func child() (was bool) {
	was, err := procs.ServeIfAsked()
	if !was {
		var cfg procs.WorkerConfig
		if cfg, was, err = procs.WorkerAsked(); was && err == nil {
			err = serve(cfg)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	return was
}

func serve(cfg procs.WorkerConfig) error {
	if cfg.Rival != "" {
		return rivals.Run(cfg)
	}
	return work.Run(cfg)
}

type options struct {
	settings
	html    string
	json    string
	list    bool
	shrink  int
	mutate  bool
	seeds   int
	mutants []string
	rivals  bool
	against []string // the rivals; nil: all
	table   string
}

func parse(args []string, out io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Uint64Var(&o.seed, "seed", uint64(time.Now().Unix()), "the faults follow from this `number` and the duration")
	flags.DurationVar(&o.duration, "duration", time.Minute, "how long faults happen")
	flags.StringVar(&o.dir, "dir", "", "write histories and logs into this new `folder`, and keep it")
	flags.BoolVar(&o.tidy, "tidy", false, "remove histories and logs also after a failure")
	flags.StringVar(&o.html, "html", "", "write the timeline into this `file` (default: chaos.html after a failure)")
	flags.BoolVar(&o.list, "list", false, "list the faults that happened")
	flags.IntVar(&o.shrink, "shrink", 0, "after a failure, look for fewer faults that do it in at most so many `runs`")
	flags.BoolVar(&o.mutate, "mutate", false, "break natty's promises one by one, and fail unless a checker finds each")
	flags.IntVar(&o.seeds, "seeds", 3, "how many seeds -mutate tries for each promise")
	flags.StringVar(&o.json, "json", "", "write the problems into this `file`")
	flags.BoolVar(&o.rivals, "rivals", false, "do the same faults to natty and to other libraries, and compare")
	flags.StringVar(&o.table, "table", "", "with -rivals: write the table into this `file`")
	against := flags.String("against", "", "with -rivals: only these `names`, as in natty,nats.go")
	flags.StringVar(&o.old, "old", "", "restart workers also with this `file`, which is this command of an older revision")
	only := flags.String("only", "", "make only the faults with these `numbers`, as in 3,5,8")
	roles := flags.String("roles", "", "start only workers of these `roles`, as in pub,plain")
	kinds := flags.String("kinds", "", "make only faults of these `kinds`, as in kill,freeze")
	names := flags.String("mutants", "", "with -mutate: only the mutants with these `names`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.duration <= 0 {
		return o, errors.New("-duration must be more than 0, and there are no other arguments")
	}
	if err := o.findOld(); err != nil {
		return o, err
	}
	o.roles, o.kinds, o.mutants, o.against = list(*roles), list(*kinds), list(*names), list(*against)
	for _, text := range list(*only) {
		n, err := strconv.Atoi(text)
		if err != nil {
			return o, fmt.Errorf("-only: %w", err)
		}
		o.only = append(o.only, n)
	}
	return o, nil
}

// findOld looks for the older program.
func (o *options) findOld() (err error) {
	if o.old == "" {
		return nil
	}
	if o.mutate || o.rivals {
		return errors.New("-old is not for -mutate and -rivals")
	}
	if o.old, err = filepath.Abs(o.old); err == nil {
		_, err = exec.LookPath(o.old)
	}
	if err != nil {
		return fmt.Errorf("-old: %w", err)
	}
	return nil
}

// list returns the parts of a list with commas, or nil.
func list(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func chaos(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	if o.mutate {
		return mutate(ctx, o, say)
	}
	if o.rivals {
		return compare(ctx, o, say)
	}
	result, err := once(ctx, o.settings, say)
	if err != nil {
		return err
	}
	if o.json != "" {
		if err := writeReport(o.json, result); err != nil {
			return err
		}
	}
	if o.list {
		for _, f := range result.faults {
			say("%v", f)
		}
	}
	if o.html == "" && len(result.problems) > 0 {
		o.html = "chaos.html"
	}
	if o.html != "" {
		page := timeline.Page(fmt.Sprintf("seed %d, %v", o.seed, o.duration), result.events, result.problems)
		if err := os.WriteFile(o.html, page, 0o600); err != nil {
			return err
		}
		say("the timeline is in %s", o.html)
	}
	err = verdict(o.settings, result, say)
	if err != nil && o.shrink > 0 {
		faults := shrink(ctx, o.settings, result, o.shrink, say)
		say("with %d of %d faults: %s", len(faults), len(result.faults), command(o.settings, faults))
	}
	return err
}

// once does a run in a folder of its own. It removes the folder unless it was asked for
// it, or something is wrong.
func once(ctx context.Context, s settings, say func(string, ...any)) (o outcome, err error) {
	if s.dir != "" {
		if err := os.Mkdir(s.dir, 0o700); err != nil {
			return o, err
		}
		return perform(ctx, s, say)
	}
	if s.dir, err = os.MkdirTemp("", "chaos-"); err != nil {
		return o, err
	}
	o, err = perform(ctx, s, say)
	if err == nil && len(o.problems) == 0 || s.tidy {
		_ = os.RemoveAll(s.dir) // it is in the folder for such things
	}
	return o, err
}

// verdict says what a run has shown. Its error says that something is wrong.
func verdict(s settings, o outcome, say func(string, ...any)) error {
	say("%s", counts(o.events))
	for _, text := range o.undecided {
		say("UNDECIDED %s", text)
	}
	if len(o.problems) == 0 {
		say("seed %d: all %d checks hold", s.seed, len(check.All))
		return nil
	}
	const most = 12
	shown := map[string]int{}
	for _, p := range o.problems {
		if shown[p.Check]++; shown[p.Check] <= most {
			say("PROBLEM %6.1fs %s: %s", sinceChaos(o.events, p.At), p.Check, p.Text)
		}
	}
	for _, c := range check.All {
		if n := shown[c.Name]; n > 0 {
			say("%5d × %s", n, c.Name)
		}
	}
	say("to repeat it: %s", command(s, nil))
	return fmt.Errorf("seed %d: %d problems", s.seed, len(o.problems))
}

// command is how to repeat a run, with some of its faults only.
func command(s settings, faults []nemesis.Fault) string {
	line := fmt.Sprintf("go run ./chaos -seed %d -duration %v", s.seed, s.duration)
	if s.roles != nil {
		line += " -roles " + strings.Join(s.roles, ",")
	}
	if s.kinds != nil {
		line += " -kinds " + strings.Join(s.kinds, ",")
	}
	if s.old != "" {
		line += " -old " + s.old
	}
	switch {
	case faults != nil:
		line += " -only " + nemesis.Numbers(faults)
	case s.only != nil:
		line += " -only " + strings.Trim(strings.ReplaceAll(fmt.Sprint(s.only), " ", ","), "[]")
	}
	return line
}
