//go:build !unix

package main

import "os"

// What pauses a process without its knowledge, and lets it go on: there is nothing like it.
var pause, resume os.Signal
