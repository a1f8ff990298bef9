package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/natty-go/natty"
)

// storage stands for whatever a leader writes to outside of NATS. All that it has to do is to remember the largest token that it
// was shown, and to refuse smaller ones. In a database that is a condition: UPDATE … WHERE token <= $1.
type storage struct {
	mu    sync.Mutex // guards what follows
	token uint64
	state string
}

// ServeHTTP takes a state.
func (s *storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	state, err := io.ReadAll(r.Body)
	var token uint64
	if err == nil {
		_, err = fmt.Sscan(r.Header.Get("Token"), &token)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if token < s.token {
		http.Error(w, fmt.Sprintf("there is a later leader, with token %d", s.token), http.StatusConflict)
		return
	}
	s.token, s.state = token, string(state)
}

func (s *storage) read() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// store writes a state to the storage. A refusal is natty.ErrDeposed, as Term.Put's is.
func store(ctx context.Context, url string, token uint64, state string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, url, strings.NewReader(state))
	if err != nil {
		return err
	}
	request.Header.Set("Token", fmt.Sprint(token))
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	switch {
	case err != nil:
		return err
	case answer.StatusCode == http.StatusConflict:
		return fmt.Errorf("%w: %s", natty.ErrDeposed, said)
	case answer.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s", answer.Status, said)
	}
	return nil
}
