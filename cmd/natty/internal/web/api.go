package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/natty-go/natty/cmd/natty/internal/account"
)

// events sends the history, and then each look, as server-sent events.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	news := make(chan struct{}, 1)
	s.mu.Lock()
	s.readers[news] = struct{}{}
	history, err := json.Marshal(s.history)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.readers, news)
		s.mu.Unlock()
	}()
	if err != nil {
		return
	}
	if _, err := fmt.Fprintf(w, "retry: 2000\nevent: history\ndata: %s\n\n", history); err != nil {
		return
	}
	for sent := 0; ; {
		s.mu.Lock()
		data, version := s.latest, s.version
		s.mu.Unlock()
		if version > sent {
			sent = version
			if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil {
				return
			}
		}
		if control.Flush() != nil {
			return
		}
		select {
		case <-news:
		case <-r.Context().Done():
			return
		}
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the browser has gone
}

// findings sends what natty doctor finds, which takes more requests than a look.
func (s *Server) findings(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
	defer cancel()
	all, err := s.cfg.Account.Examine(ctx, nil)
	if err != nil {
		refuse(w, http.StatusBadGateway, err.Error())
		return
	}
	reply(w, all)
}

const (
	defaultLetters = 100
	maxLetters     = 1000
	maxPayload     = 64 << 10 // of a letter on the page
)

// found is what the page shows of a subject.
type found struct {
	Letters []account.Letter `json:"letters"`
	// More says that there are more than these.
	More bool `json:"more"`
}

func (s *Server) letters(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f := account.Filter{Origin: q.Get("origin"), Reason: q.Get("reason"), Durable: q.Get("durable")}
	limit := defaultLetters
	var err error
	for name, into := range map[string]*time.Duration{"older": &f.OlderThan, "newer": &f.NewerThan} {
		if text := q.Get(name); text != "" && err == nil {
			if *into, err = time.ParseDuration(text); err != nil {
				err = fmt.Errorf("the age %q is no time; give one such as 10m or 36h", text)
			}
		}
	}
	if text := q.Get("limit"); text != "" && err == nil {
		limit, err = strconv.Atoi(text)
	}
	if err == nil {
		err = f.Check()
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	limit = min(max(limit, 1), maxLetters)
	ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
	defer cancel()
	all := found{Letters: []account.Letter{}}
	for l, err := range s.cfg.Account.Letters(ctx, q.Get("subject"), f) {
		if err != nil {
			refuse(w, http.StatusBadGateway, err.Error())
			return
		}
		if len(all.Letters) == limit {
			all.More = true
			break
		}
		if len(l.Payload) > maxPayload {
			l.Problem = fmt.Sprintf("only the first %d of %d bytes are shown", maxPayload, len(l.Payload))
			l.Payload = l.Payload[:maxPayload]
		}
		all.Letters = append(all.Letters, l)
	}
	reply(w, all)
}

// wanted is a request to change letters.
type wanted struct {
	Subject string          `json:"subject"`
	Places  []account.Place `json:"places"`
}

// changed is the answer.
type changed struct {
	Done  int    `json:"done"`
	Error string `json:"error,omitempty"`
}

func (s *Server) redrive(w http.ResponseWriter, r *http.Request) {
	s.do(w, r, func(ctx context.Context, want wanted) (int, error) {
		return s.cfg.Account.Redrive(ctx, want.Subject, want.Places, func(int) {})
	})
}

func (s *Server) purge(w http.ResponseWriter, r *http.Request) {
	s.do(w, r, func(ctx context.Context, want wanted) (int, error) {
		return s.cfg.Account.Purge(ctx, want.Places, func(int) {})
	})
}

func (s *Server) do(w http.ResponseWriter, r *http.Request, f func(context.Context, wanted) (int, error)) {
	var want wanted
	if err := json.NewDecoder(r.Body).Decode(&want); err != nil || want.Subject == "" || len(want.Places) == 0 {
		refuse(w, http.StatusBadRequest, "the request names no letters")
		return
	}
	// What has begun ends, also when the page is closed meanwhile.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
	defer cancel()
	n, err := f(ctx, want)
	answer := changed{Done: n}
	if err != nil {
		answer.Error = err.Error()
	}
	reply(w, answer)
}
