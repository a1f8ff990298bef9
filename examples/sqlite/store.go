package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/natty-go/natty"
)

// A message that comes again has the same place in its stream: it is the same row.
const table = `CREATE TABLE IF NOT EXISTS readings (
	stream   TEXT    NOT NULL,
	sequence INTEGER NOT NULL,
	meter    TEXT    NOT NULL CHECK (meter <> ''),
	kwh      REAL    NOT NULL CHECK (kwh >= 0),
	PRIMARY KEY (stream, sequence)
)`

// store is the database.
type store struct{ db *sql.DB }

func open(ctx context.Context, file string) (*store, error) {
	db, err := sql.Open("sqlite", file)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // SQLite has one writer
	if _, err := db.ExecContext(ctx, table); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w; name a file that can be written, or a SQLite database", file, err), db.Close())
	}
	return &store{db}, nil
}

func (s *store) close() error { return s.db.Close() }

// insert is the handler. All readings of a batch are committed before any is acknowledged. After an error they all come
// again, and those that are in the database already stay as they are. A reading that can never be inserted fails by itself.
func (s *store) insert(ctx context.Context, msgs []*nats.Msg) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after the commit there is nothing to roll back
	stmt, err := tx.PrepareContext(ctx,
		`INSERT INTO readings (stream, sequence, meter, kwh) VALUES (?, ?, ?, ?) ON CONFLICT (stream, sequence) DO NOTHING`)
	if err != nil {
		return err
	}
	defer stmt.Close() //nolint:errcheck // it ends with the transaction
	refused := map[int]error{}
	for i, msg := range msgs {
		if err := insertOne(ctx, stmt, msg); errors.Is(err, errRefused) {
			refused[i] = natty.Permanent(err) // a dead letter
		} else if err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	if len(refused) > 0 {
		return &natty.PartialError{Errs: refused} // the others are accepted
	}
	return nil
}

var errRefused = errors.New("not a reading")

func insertOne(ctx context.Context, stmt *sql.Stmt, msg *nats.Msg) error {
	var reading struct {
		Meter string  `json:"meter"`
		KWh   float64 `json:"kwh"`
	}
	if err := json.Unmarshal(msg.Data, &reading); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	_, err = stmt.ExecContext(ctx, meta.Stream, meta.Sequence.Stream, reading.Meter, reading.KWh)
	// A constraint that is not met undoes this row and leaves the transaction as it was.
	if failed, ok := errors.AsType[*sqlite.Error](err); ok && failed.Code()&0xff == sqlite3.SQLITE_CONSTRAINT {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return err
}

// sequences returns which messages of a stream are in the database.
func (s *store) sequences(ctx context.Context, stream string) (sequences []uint64, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT sequence FROM readings WHERE stream = ?`, stream)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err says what went wrong
	for rows.Next() {
		var sequence uint64
		if err := rows.Scan(&sequence); err != nil {
			return nil, err
		}
		sequences = append(sequences, sequence)
	}
	return sequences, rows.Err()
}
