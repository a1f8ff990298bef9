// Command bench compares natty with nats.go used directly, on one nats-server process
// on this machine. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime/pprof"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type settings struct {
	rounds     int
	messages   int
	row        *regexp.Regexp
	idle       time.Duration
	check      bool
	cpuProfile string
	svg        string
}

func parseFlags(args []string, out io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.IntVar(&s.rounds, "rounds", 15, "measurements of each side")
	flags.IntVar(&s.messages, "messages", 0, "messages per measurement (default: each row's own)")
	flags.DurationVar(&s.idle, "idle", 10*time.Second, "how long idle consumers are watched")
	row := flags.String("row", "", "run only the rows and limits whose name matches this `regexp`")
	flags.BoolVar(&s.check, "check", false, "exit 1 if a row misses its target, or a limit is exceeded")
	flags.StringVar(&s.cpuProfile, "cpuprofile", "", "write a CPU profile to this `file`; its samples are tagged with row and side")
	flags.StringVar(&s.svg, "svg", "", "draw the rows as a picture into this `file`")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	var err error
	if s.row, err = regexp.Compile(*row); err != nil {
		return s, fmt.Errorf("-row: %w", err)
	}
	if !s.measuresAnything() {
		return s, fmt.Errorf("-row %q: no row or limit has such a name; they are: %s", *row, strings.Join(names(), ", "))
	}
	if s.rounds < 1 || s.messages < 0 || s.idle <= 0 || flags.NArg() > 0 {
		return s, errors.New("-rounds must be 1 or more, -messages 0 or more, -idle a time, and there are no other arguments")
	}
	return s, nil
}

// measuresAnything reports whether -row matches a name: to measure nothing, with -check too, would pass.
func (s settings) measuresAnything() bool { return slices.ContainsFunc(names(), s.row.MatchString) }

// names returns the names of all rows and limits.
func names() (all []string) {
	for _, r := range rows {
		all = append(all, r.name)
	}
	for _, l := range allLimits() {
		all = append(all, l.name)
	}
	return all
}

// run is the whole program.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	s, err := parseFlags(args, out)
	if err != nil {
		return err
	}
	var picture *os.File
	if s.svg != "" { // before minutes of work
		if picture, err = os.Create(s.svg); err != nil {
			return fmt.Errorf("-svg: %w", err)
		}
		defer func() { err = errors.Join(err, picture.Close()) }()
	}
	srv, err := startServer(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	if s.cpuProfile != "" {
		stop, err := profile(s.cpuProfile)
		if err != nil {
			return err
		}
		defer stop()
	}
	// The limits come first, in a process that has done nothing yet: the rows' Fetch
	// calls leave timers that would show for ten seconds.
	exceeded, err := runLimits(ctx, srv.url, s, out)
	if err != nil {
		return err
	}
	results, err := runRows(ctx, srv.url, s, out)
	if err != nil {
		return err
	}
	if picture != nil {
		if err := drawChart(picture, results, s.rounds); err != nil {
			return fmt.Errorf("-svg: %w", err)
		}
	}
	if missed := missesOf(results); s.check && missed+exceeded > 0 {
		return fmt.Errorf("rows that miss a target: %d, limits that are exceeded: %d", missed, exceeded)
	}
	return nil
}

// missesOf counts the rows that miss their target.
func missesOf(results []*result) (n int) {
	for _, r := range results {
		if r.below() || r.above() {
			n++
		}
	}
	return n
}

// runRows measures the rows, and prints each as a line of the table.
func runRows(ctx context.Context, url string, s settings, out io.Writer) (results []*result, err error) {
	head := true
	for _, r := range rows {
		if !s.row.MatchString(r.name) {
			continue
		}
		if head {
			printHead(out, s.rounds)
			head = false
		}
		if s.messages > 0 {
			r.messages, r.rawMessages = s.messages, s.messages
		}
		// A row that takes longer than this is stuck.
		rowCtx, cancel := context.WithTimeout(ctx, time.Duration(s.rounds)*time.Minute)
		res, err := measure(rowCtx, url, r, s.rounds)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		res.print(out)
		results = append(results, res)
	}
	return results, nil
}

func profile(file string) (stop func(), err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}, nil
}
