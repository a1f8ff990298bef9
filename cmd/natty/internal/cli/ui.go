package cli

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/natty-go/natty/cmd/natty/internal/web"
)

func (a *app) ui() *cobra.Command {
	var listen string
	var interval time.Duration
	var readOnly bool
	var dead []string
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Show an account as a web page, until Ctrl-C",
		Long: `Show an account as a web page: lag and rates as charts, leaders and locks, dead letters
with their headers and payload, which can be redriven and purged.

Only who has the URL that it prints can see the page. The connection to the browser is
not encrypted: listen on another address than 127.0.0.1 only in a network that you trust.`,
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
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", listen)
			if err != nil {
				return fmt.Errorf("cannot listen on %s: %w; choose another address with --listen", listen, err)
			}
			s := web.New(web.Config{Account: acc, Listener: l, Interval: interval, ReadOnly: readOnly, Version: version()})
			if err := a.printUI(s.URL(), l.Addr()); err != nil {
				return err
			}
			return s.Serve(cmd.Context())
		}),
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "address to listen on; port 0 is any free one")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between two looks")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "refuse redriving and purging")
	cmd.Flags().StringSliceVar(&dead, "dead", nil, "subjects of dead letters, where they are not found by themselves")
	return cmd
}

func (a *app) printUI(url string, addr net.Addr) error {
	if a.json {
		return a.printJSON(struct {
			URL string `json:"url"`
		}{url})
	}
	if ip, err := netip.ParseAddrPort(addr.String()); err == nil && !ip.Addr().IsLoopback() {
		fmt.Fprintf(a.err, "natty: others in the network can reach %s, and read along: it is not encrypted\n", addr)
	}
	_, err := fmt.Fprintf(a.out, "Open %s\nPress Ctrl-C to stop it.\n", url)
	return err
}
