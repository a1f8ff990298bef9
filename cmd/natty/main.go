// Natty is the command line tool of natty: a development server, commands that run on
// one machine only, dead letters, and what an account is doing.
package main

import (
	"os"

	"github.com/natty-go/natty/cmd/natty/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
