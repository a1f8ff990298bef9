// Wget stands in for the wget of the official image, which only the health check in
// docker-compose.yml calls. It supports that one call:
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
	flag.Bool("q", true, "quiet, which it always is")
	out := flag.String("O", "", "the file to write the response to")
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

// get writes the response of url to the file out. Like wget, it fails unless the status
// is a success.
func get(url, out string) (err error) {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	file, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = io.Copy(file, response.Body)
	return err
}
