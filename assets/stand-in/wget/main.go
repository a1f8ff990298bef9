// Wget stands in for the wget of the official image, whose only caller is the health check in docker-compose.yml. It knows
// the one call made there:
//
//	wget -q -O FILE URL
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	flag.Bool("q", true, "quiet, as it is anyway")
	out := flag.String("O", "", "where the answer goes")
	flag.Parse()
	if flag.NArg() != 1 || *out == "" {
		fmt.Fprintln(os.Stderr, "usage: wget -q -O FILE URL")
		os.Exit(2)
	}
	if err := get(flag.Arg(0), *out); err != nil {
		fmt.Fprintln(os.Stderr, "wget:", err)
		os.Exit(1)
	}
}

// get writes what url answers to out. Like wget it takes every status but success for a failure.
func get(url, out string) (err error) {
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	file, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = io.Copy(file, answer.Body)
	return err
}
