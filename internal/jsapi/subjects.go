package jsapi

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
)

// SubjectPage is a stream's state with some of its subjects: those behind an offset, in
// their order. The server sends 100,000 of them at most.
type SubjectPage struct {
	jetstream.StreamInfo
	Total int `json:"total"`
}

// SubjectsFrom is the request for the subjects of a stream that match a filter, from an
// offset on.
func SubjectsFrom(filter string, offset int) map[string]any {
	return map[string]any{"subjects_filter": filter, "offset": offset}
}

// pageOverlap is how many subjects of a page the next one repeats at first.
const pageOverlap = 1000

// EachSubjectPage calls take for the pages that read returns, so that each subject comes
// that is there from the first page to the last. A subject may come more than once.
//
// Subjects that go away meanwhile move the others to the front, so that a page can begin
// behind subjects that no page has. A page is believed only if it begins at or before
// the last subject of the pages before it.
func EachSubjectPage(read func(offset int) (*SubjectPage, error), take func(*SubjectPage)) error {
	last, overlap := "", pageOverlap
	for offset := 0; ; {
		p, err := read(offset)
		if err != nil {
			return err
		}
		low, high := bounds(p.State.Subjects)
		if offset > 0 && (low == "" || low > last) {
			overlap = max(1, 2*overlap)
			offset = max(0, offset-overlap)
			continue
		}
		take(p)
		last = max(last, high)
		size := len(p.State.Subjects)
		if size == 0 || offset+size >= p.Total {
			return nil
		}
		overlap = min(pageOverlap, size/2)
		offset += size - overlap
	}
}

// bounds returns the first and the last subject of a page.
func bounds(subjects map[string]uint64) (low, high string) {
	for s := range subjects {
		if low == "" || s < low {
			low = s
		}
		high = max(high, s)
	}
	return low, high
}

// EachSubject calls f for each subject of a stream that matches a filter, with its page.
// See EachSubjectPage.
func (a *Client) EachSubject(
	ctx context.Context, stream, filter string, f func(p *SubjectPage, subject string),
) error {
	return EachSubjectPage(func(offset int) (*SubjectPage, error) {
		p := &SubjectPage{}
		return p, a.Query(ctx, "STREAM.INFO."+stream, SubjectsFrom(filter, offset), p)
	}, func(p *SubjectPage) {
		for s := range p.State.Subjects {
			f(p, s)
		}
	})
}
