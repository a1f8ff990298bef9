package kv

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/natty-go/natty/internal/jsapi"
)

// pageTimeout bounds the wait for one page. For each one the server sorts all the keys,
// which takes it about half a second for a million.
const pageTimeout = 20 * time.Second

type page = jsapi.SubjectPage

// listing has the keys that the bucket's leader knows, markers included. A key that is
// there from the first page to the last is in it.
type listing struct {
	first *page // with the state before all else
	keys  map[string]struct{}
}

// list reads a listing, page by page.
func list(prefix string, read func(offset int) (*page, error)) (*listing, error) {
	all := &listing{keys: map[string]struct{}{}}
	err := jsapi.EachSubjectPage(read, func(p *page) {
		if all.first == nil {
			all.first = p
		}
		for subject := range p.State.Subjects {
			all.keys[strings.TrimPrefix(subject, prefix)] = struct{}{}
		}
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// page reads a page of the keys that are watched. With an offset below 0 it has none.
func (s *session) page(ctx context.Context, offset int) (*page, error) {
	var request any
	patience := s.patience
	if offset >= 0 {
		patience = pageTimeout
		request = jsapi.SubjectsFrom(s.filter(), offset)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	data, err := s.c.API.Call(ctx, "STREAM.INFO."+StreamName(s.bucket), request)
	if err != nil {
		return nil, err
	}
	s.progress()
	p := &page{}
	return p, json.Unmarshal(data, p)
}

// info reads the stream's state without its keys.
func (s *session) info(ctx context.Context) (*page, error) { return s.page(ctx, -1) }
