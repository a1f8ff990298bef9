package cli

import (
	"cmp"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/child"
)

// leaseFlags are what natty lead and natty lock have in common.
type leaseFlags struct {
	bucket, key, name string
	ttl, grace        time.Duration
	replicas          int
}

func (l *leaseFlags) flags(f *pflag.FlagSet, name, usage string) {
	host, _ := os.Hostname()
	f.StringVar(&l.bucket, "bucket", "", "bucket of the key; it is made if it is missing (required)")
	f.StringVar(&l.key, "key", "", "what to own, such as nightly-report (required)")
	f.StringVar(&l.name, name, cmp.Or(host, "natty"), usage)
	f.DurationVar(&l.ttl, "ttl", 10*time.Second, "how long the ownership survives a crash; whole seconds")
	f.DurationVar(&l.grace, "grace", 10*time.Second, "time between TERM and KILL when natty itself is stopped")
	f.IntVar(&l.replicas, "replicas", 1, "copies of a new bucket")
}

func (l *leaseFlags) check(args []string) error {
	switch {
	case l.bucket == "":
		return usagef("--bucket is missing; name the bucket, such as --bucket elections")
	case l.key == "":
		return usagef("--key is missing; name what to own, such as --key nightly-report")
	case len(args) == 0:
		return usagef("the command is missing; put it behind --, such as: -- ./report --all")
	case l.ttl < time.Second, l.ttl%time.Second != 0: // the guard's time is a part of it
		return usagef("--ttl %v is not a number of whole seconds, at least one, such as 10s", l.ttl)
	case l.replicas < 1:
		return usagef("--replicas %d is no number of copies; give 1, or 3 in a cluster", l.replicas)
	case l.grace < 0:
		return usagef("--grace %v is negative; give a time, or 0 to kill at once", l.grace)
	}
	return child.Check(args)
}

// lostGrace is how long a command gets that must not run any more. Another owner can
// follow a fifth of the TTL after the ownership ends; the command is dead before.
func (l *leaseFlags) lostGrace() time.Duration { return min(l.grace, l.ttl/10) }

const onlyOnce = `
The command runs in a process group of its own, with a guard process that kills the
whole group if natty dies, also by kill -9. When the ownership is lost, the group gets
TERM, and KILL before anybody else can own the key. The variables NATTY_TOKEN (a number
that grows with every owner), NATTY_BUCKET, NATTY_KEY and NATTY_OWNER tell the command
who it is.

The exit code is that of the command. It is 128 plus the signal's number if a signal
ended the command, or if natty was stopped while it waited.`

func (a *app) lead() *cobra.Command {
	var l leaseFlags
	cmd := &cobra.Command{
		Use:   "lead --bucket BUCKET --key KEY [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command on one machine at a time, with the others standing by",
		Long: `Wait to become the leader, and run the command while this process leads. When the
leadership is lost, stop the command, wait to be elected again, and run it again. When
the command ends by itself, give the leadership back and end with its exit code.
` + onlyOnce,
		Example: `  natty lead --bucket elections --key mailer -- ./mailer --queue out`,
		RunE: run(func(cmd *cobra.Command, args []string) error {
			if err := l.check(args); err != nil {
				return err
			}
			return a.underLease(cmd.Context(), (&program{args, &l, a}).runLead)
		}),
	}
	l.flags(cmd.Flags(), "node", "who this is, for people to read")
	return cmd
}

func (a *app) lock() *cobra.Command {
	var l leaseFlags
	var noWait bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "lock --bucket BUCKET --key KEY [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command while no other machine runs it",
		Long: `Wait for the lock, run the command once, and release the lock. If the lock is lost
while the command runs, stop the command and end with exit code 1.
` + onlyOnce,
		Example: `  natty lock --bucket locks --key migrate --no-wait -- ./migrate up`,
		RunE: run(func(cmd *cobra.Command, args []string) error {
			if err := l.check(args); err != nil {
				return err
			}
			switch {
			case wait < 0:
				return usagef("--wait %v is negative; give a time, or 0 to wait for ever", wait)
			case noWait && wait > 0:
				return usagef("--no-wait and --wait exclude each other; give one of them")
			}
			return a.underLease(cmd.Context(), func(stop stops, c *natty.Client) error {
				return (&program{args, &l, a}).runLock(stop, c, noWait, wait)
			})
		}),
	}
	l.flags(cmd.Flags(), "owner", "who this is, for people to read")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "fail at once if somebody else has the lock")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait no longer than this for the lock; 0 is for ever")
	return cmd
}

// guard is the hidden command that stands between natty and the command.
func guard() *cobra.Command {
	return &cobra.Command{
		Use: child.GuardCommand, Hidden: true, DisableFlagParsing: true,
		RunE: run(func(_ *cobra.Command, args []string) error {
			if len(args) < 3 {
				return usagef("this command is for natty lead and natty lock")
			}
			silence, err := time.ParseDuration(args[0])
			if err != nil {
				return usagef("this command is for natty lead and natty lock")
			}
			return &exitError{child.Guard(silence, args[2:])}
		}),
	}
}
