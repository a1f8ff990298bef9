package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/natty-go/natty/cmd/natty/internal/devserver"
)

func (a *app) dev() *cobra.Command {
	var cfg devserver.Config
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a TLS server with JetStream for development, until Ctrl-C",
		Long: `Run a NATS server with JetStream and TLS in this process, until Ctrl-C.

It listens on 127.0.0.1 only and asks for no login. Without --dir the streams are gone
when it stops.`,
		Args: cobra.NoArgs,
		RunE: run(func(cmd *cobra.Command, _ []string) error {
			if cfg.Port < 0 || cfg.Port > 65535 {
				return usagef("--port %d does not exist; give 1 to 65535, or 0 for any free port", cfg.Port)
			}
			s, err := devserver.Start(cfg)
			if err != nil {
				return fmt.Errorf("the server did not start: %w", err)
			}
			if err := a.printDev(s, cfg.Dir != ""); err != nil {
				return err
			}
			<-cmd.Context().Done()
			if !a.json {
				fmt.Fprintln(a.out, "\nStopping.")
			}
			return s.Close()
		}),
	}
	cmd.Flags().StringVar(&cfg.Dir, "dir", "", "keep the streams and the certificates in this directory")
	cmd.Flags().IntVar(&cfg.Port, "port", 4222, "port on 127.0.0.1; 0 is any free one")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

func (a *app) printDev(s *devserver.Server, kept bool) error {
	if a.json {
		return a.printJSON(struct {
			URL    string `json:"url"`
			CAFile string `json:"ca_file"`
			Dir    string `json:"dir"`
			Kept   bool   `json:"kept"`
		}{s.URL, s.CAFile, s.Dir, kept})
	}
	store := "gone when it stops; keep it with --dir"
	if kept {
		store = "kept in " + s.Dir
	}
	_, err := fmt.Fprintf(a.out, `A NATS server with JetStream and TLS runs at %[1]s
Its store is %[3]s.

In Go:
	natty.Config{
		Name:    "my-service",
		Servers: []string{%[1]q},
		TLS:     natty.TLSConfig{CAFile: %[2]q},
	}

In a service file:
	"servers": [%[1]q],
	"tls": {"ca_file": %[2]q}

For natty and nats, in a shell:
	export NATS_URL=%[1]s NATS_CA=%[4]s

Press Ctrl-C to stop it.
`, s.URL, s.CAFile, store, shellQuote(s.CAFile))
	return err
}
