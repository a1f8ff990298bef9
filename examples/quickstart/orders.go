package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/natty-go/natty/examples/internal/setup"
)

// order is one line of the CSV file, and as JSON the body of one message.
type order struct {
	ID       string `json:"id"`
	Customer string `json:"customer"`
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
	Cents    int    `json:"cents"`
}

//go:embed orders.csv
var ownOrders []byte

const columns = "id,customer,item,quantity,cents"

// loadOrders reads the file that was named on the command line, or the one that comes with this program.
func loadOrders(ctx context.Context, args []string) (orders []order, file string, err error) {
	switch len(args) {
	case 0:
		orders, err = readOrders("orders.csv", bytes.NewReader(ownOrders))
		return orders, "orders.csv", err
	case 1:
		f, err := setup.Open(ctx, args[0])
		if err != nil {
			return nil, "", fmt.Errorf("%w; name a CSV file with the columns %s, or none for the built-in orders", err, columns)
		}
		defer f.Close() //nolint:errcheck // it was only read
		orders, err = readOrders(args[0], f)
		return orders, args[0], err
	}
	return nil, "", fmt.Errorf("%d arguments; usage: quickstart [orders.csv]", len(args))
}

// readOrders reads a CSV file with a header. Every error says where it is and what to do about it.
func readOrders(file string, r io.Reader) ([]order, error) {
	lines := csv.NewReader(r)
	lines.FieldsPerRecord = -1 // parseOrder counts them, with a better error
	header, err := lines.Read()
	const byteOrderMark = "\ufeff" // spreadsheets write one
	if got := strings.TrimPrefix(strings.Join(header, ","), byteOrderMark); err == nil && got != columns {
		return nil, fmt.Errorf("%s:1: the header is %q; make it %q", file, got, columns)
	}
	var orders []order
	lineOf := map[string]int{}
	for err == nil {
		var fields []string
		if fields, err = lines.Read(); err != nil {
			break
		}
		line, _ := lines.FieldPos(0)
		o, wrong := parseOrder(fields)
		if first, taken := lineOf[o.ID]; taken && wrong == nil {
			wrong = fmt.Errorf("the id %q is taken by line %d; give every order its own", o.ID, first)
		}
		if wrong != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, line, wrong)
		}
		lineOf[o.ID] = line
		orders = append(orders, o)
	}
	var malformed *csv.ParseError
	switch {
	case errors.As(err, &malformed):
		return nil, fmt.Errorf("%s:%d: %w; put a field that has quotes in it in quotes, and double those inside", file, malformed.Line, malformed.Err)
	case !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: %w", file, err)
	case len(orders) == 0:
		return nil, fmt.Errorf("%s: there are no orders in it; write the line %q, and below it one line for each order", file, columns)
	}
	return orders, nil
}

func parseOrder(fields []string) (order, error) {
	if want := strings.Count(columns, ",") + 1; len(fields) != want {
		return order{}, fmt.Errorf("%d fields; write %d: %s", len(fields), want, columns)
	}
	o := order{ID: fields[0], Customer: fields[1], Item: fields[2]}
	if o.ID == "" {
		return order{}, errors.New("the id is empty; give every order one of its own")
	}
	var err error
	if o.Quantity, err = strconv.Atoi(fields[3]); err != nil || o.Quantity < 1 {
		return order{}, fmt.Errorf("the quantity is %q; write a whole number, 1 or more", fields[3])
	}
	if o.Cents, err = strconv.Atoi(fields[4]); err != nil || o.Cents < 0 {
		return order{}, fmt.Errorf("the cents are %q; write a whole number, 0 or more", fields[4])
	}
	return o, nil
}
