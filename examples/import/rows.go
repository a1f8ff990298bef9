package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/examples/internal/setup"
)

// source is a file to import.
type source struct {
	file    string
	size    int64
	own     bool // it was made here, without two rows that are the same
	tooLong int  // rows that the stream refuses, in one that was made here
}

// makeSource makes a file with n rows, of which three are too long.
func makeSource(file string, n int) (src source, err error) {
	if n < 1 {
		return source{}, fmt.Errorf("%d rows; make it 1 or more", n)
	}
	f, err := os.Create(file)
	if err != nil {
		return source{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	src = source{file: file, own: true}
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, "id,customer,item,cents,note")
	for i := range n {
		note := ""
		if i == n/4 || i == n/2 || i == n*3/4 {
			note = strings.Repeat("see above, ", longest/10)
			src.tooLong++
		}
		fmt.Fprintf(w, "R-%06d,customer %d,%s,%d,%q\n", i+1, i%997, [...]string{"cup", "plate", "spoon"}[i%3], 100+i%900, note)
	}
	if err := w.Flush(); err != nil {
		return source{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return source{}, err
	}
	src.size = info.Size()
	return src, nil
}

// rows reads a CSV file, whose first line has the names of the columns, row by row.
type rows struct {
	file    *setup.File
	lines   *csv.Reader
	columns []string
	row     map[string]string
	msg     nats.Msg // for every row again
}

func openRows(ctx context.Context, file, subject string) (_ *rows, err error) {
	f, err := setup.Open(ctx, file)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close() //nolint:errcheck // it was only read
		}
	}()
	r := &rows{file: f, lines: csv.NewReader(f), row: map[string]string{}, msg: nats.Msg{Subject: subject, Header: nats.Header{}}}
	r.columns, err = r.lines.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: it is empty; write the names of the columns, and below them one line for each row", file)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	r.columns[0] = strings.TrimPrefix(r.columns[0], "\ufeff") // spreadsheets write one
	for i, name := range r.columns {
		if slices.Contains(r.columns[:i], name) {
			return nil, fmt.Errorf("%s:1: two columns are named %q; give each its own name", file, name)
		}
	}
	r.lines.ReuseRecord = true
	return r, nil
}

func (r *rows) close() { r.file.Close() } //nolint:errcheck // it was only read

// offset is how far in the file it has read, in bytes.
func (r *rows) offset() int64 { return r.lines.InputOffset() }

// next returns the message of the next row, or io.EOF. It is good until next is called again: a Writer has copied it by then.
func (r *rows) next() (*nats.Msg, error) {
	fields, err := r.lines.Read()
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.file.Name(), err)
	}
	for i, name := range r.columns {
		r.row[name] = fields[i]
	}
	if r.msg.Data, err = json.Marshal(r.row); err != nil {
		return nil, err
	}
	// The id is the same whenever the row is, wherever it stands: the server stores it once, in this import and in the next.
	// Of two rows that are the same it stores one; where both count, give each a column that tells them apart.
	sum := sha256.Sum256(r.msg.Data)
	r.msg.Header.Set(jetstream.MsgIDHeader, hex.EncodeToString(sum[:16]))
	line, _ := r.lines.FieldPos(0)
	r.msg.Header.Set(lineHeader, strconv.Itoa(line))
	return &r.msg, nil
}

// lineHeader says where in the file a row was.
const lineHeader = "Line"
