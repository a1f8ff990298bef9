package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/account"
)

func (a *app) doctor() *cobra.Command {
	var file string
	var dead []string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong in an account, with a remedy for each",
		Long: `Examine an account: consumers that are stalled, filters that match nothing, messages of
work queues that nobody receives, dead letters, limits with which messages get lost,
missing permissions; with --service also where the server differs from a service file.

It changes nothing. The exit code is 1 if there is a finding, and 0 if there is none.`,
		Args: cobra.NoArgs,
		RunE: run(func(cmd *cobra.Command, _ []string) error {
			var service *natty.Service
			if file != "" {
				var err error
				if service, err = natty.LoadService(file); err != nil {
					return err
				}
			}
			acc, end, err := a.account(cmd.Context(), dead...)
			if err != nil {
				return err
			}
			defer end()
			found, err := acc.Examine(cmd.Context(), service)
			if err != nil {
				return err
			}
			return a.printFindings(found)
		}),
	}
	cmd.Flags().StringVar(&file, "service", "", "compare the server with this service file")
	cmd.Flags().StringSliceVar(&dead, "dead", nil, "subjects of dead letters, where they are not found by themselves")
	_ = cmd.MarkFlagFilename("service", "json")
	return cmd
}

func (a *app) printFindings(found []account.Finding) error {
	if a.json {
		if err := a.printJSON(found); err != nil {
			return err
		}
	} else {
		for _, f := range found {
			fmt.Fprintf(a.out, "%-8s %s: %s\n%9s→ %s\n", strings.ToUpper(f.Level), oneLine(f.About), oneLine(f.Problem), "", oneLine(f.Remedy))
		}
		if len(found) == 0 {
			fmt.Fprintln(a.out, "Nothing is wrong, as far as natty doctor looks.")
		} else {
			fmt.Fprintf(a.out, "\n%s.\n", plural(len(found), "finding", "findings"))
		}
	}
	if len(found) > 0 {
		return &exitError{exitFailure}
	}
	return nil
}
