// Package web shows an account as a web page for one person on this machine.
//
// A page of another site must learn nothing and change nothing. So every request needs
// the cookie that the URL with the token sets, and a Host that is this server's own,
// which a name that was pointed here does not have. A request that changes something
// also needs the same origin, and a second token that only the page itself has.
package web

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/natty-go/natty/cmd/natty/internal/account"
)

//go:embed assets
var assets embed.FS

var page = template.Must(template.ParseFS(assets, "assets/index.html"))

// Config says what to show, and what may be done.
type Config struct {
	Account  *account.Account
	Listener net.Listener
	Interval time.Duration // between two looks
	ReadOnly bool
	Version  string
}

// Server serves the page.
type Server struct {
	cfg         Config
	token, csrf string
	cookie      string
	host        string // of the listener
	port        string

	mu      sync.Mutex // guards what follows
	latest  []byte     // the last event
	history []point
	readers map[chan struct{}]struct{}
	version int // of latest
}

// point is a moment in the charts: lag and rate of each consumer.
type point struct {
	Time      time.Time             `json:"time"`
	Consumers map[string][2]float64 `json:"consumers"`
}

// maxHistory is how many moments the charts show.
const maxHistory = 120

// event is what the page is told after each look.
type event struct {
	Snapshot *account.Snapshot `json:"snapshot,omitempty"`
	Trouble  string            `json:"trouble,omitempty"`
}

// New returns a Server for a listener.
func New(cfg Config) *Server {
	host, port, _ := net.SplitHostPort(cfg.Listener.Addr().String())
	return &Server{
		cfg: cfg, token: rand.Text(), csrf: rand.Text(), cookie: "natty_" + port, host: host, port: port,
		readers: map[chan struct{}]struct{}{},
	}
}

// URL is what to open in a browser.
func (s *Server) URL() string {
	host := s.host
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, s.port) + "/?token=" + s.token
}

// Serve serves until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.watch(ctx) })
	wg.Go(func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(end) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(s.cfg.Listener)
	if ctx.Err() != nil {
		return nil
	}
	cancel()
	return err
}

// watch looks again and again, and tells the pages.
func (s *Server) watch(ctx context.Context) {
	for ctx.Err() == nil {
		snapshot, err := s.cfg.Account.Read(ctx)
		if ctx.Err() != nil {
			return
		}
		s.tell(snapshot, err)
		select {
		case <-time.After(s.cfg.Interval):
		case <-ctx.Done():
		}
	}
}

func (s *Server) tell(snapshot *account.Snapshot, err error) {
	e := event{Snapshot: snapshot}
	if err != nil {
		e = event{Trouble: err.Error()}
	}
	data, err := json.Marshal(e)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest = data
	s.version++
	if e.Snapshot != nil {
		p := point{Time: e.Snapshot.Time, Consumers: map[string][2]float64{}}
		for _, c := range e.Snapshot.Consumers {
			rate := 0.0
			if c.Rate != nil {
				rate = *c.Rate
			}
			p.Consumers[c.Stream+"/"+c.Name] = [2]float64{float64(c.Lag), rate}
		}
		s.history = append(s.history, p)
		s.history = s.history[max(0, len(s.history)-maxHistory):]
	}
	for r := range s.readers {
		select {
		case r <- struct{}{}:
		default: // it is about to look anyway
		}
	}
}

// Handler returns the handler of all requests.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.index)
	mux.Handle("GET /assets/", http.FileServerFS(assets))
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("GET /findings", s.findings)
	mux.HandleFunc("GET /letters", s.letters)
	mux.HandleFunc("POST /redrive", s.change(s.redrive))
	mux.HandleFunc("POST /purge", s.change(s.purge))
	return s.guard(mux)
}

const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// guard refuses requests that do not come from the page.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cache-Control": "no-store", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
			"X-Frame-Options": "DENY",
		} {
			w.Header().Set(name, value)
		}
		if !s.ownHost(r.Host) {
			refuse(w, http.StatusMisdirectedRequest, "this is not the address of natty ui; open the URL that it printed")
			return
		}
		if r.URL.Path == "/" && same(r.URL.Query().Get("token"), s.token) {
			http.SetCookie(w, &http.Cookie{ //nolint:gosec // not Secure: there is no TLS on this machine's own address
				Name: s.cookie, Value: s.token, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode,
			})
		} else if c, err := r.Cookie(s.cookie); err != nil || !same(c.Value, s.token) {
			refuse(w, http.StatusUnauthorized, "open the URL that natty ui printed, with its token")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func refuse(w http.ResponseWriter, code int, why string) {
	http.Error(w, "natty ui: "+why, code)
}

// ownHost reports whether a Host header names this server. An IP address cannot have
// been pointed here by somebody else, unlike a name.
func (s *Server) ownHost(hostport string) bool {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = strings.Trim(hostport, "[]"), "80"
	}
	_, notIP := netip.ParseAddr(host)
	return port == s.port && (notIP == nil || host == "localhost" || host == s.host)
}

// change wraps a handler that changes something.
func (s *Server) change(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		origin, site := r.Header.Get("Origin"), r.Header.Get("Sec-Fetch-Site")
		switch {
		case origin != "" && origin != "http://"+r.Host, site != "" && site != "same-origin":
			refuse(w, http.StatusForbidden, "the request comes from another site")
		case !same(r.Header.Get("X-Natty-CSRF"), s.csrf):
			refuse(w, http.StatusForbidden, "the request does not have the page's token; load the page again")
		case s.cfg.ReadOnly:
			refuse(w, http.StatusForbidden, "it runs with --read-only; start it without, to change something")
		default:
			r.Body = http.MaxBytesReader(w, r.Body, 4<<20)
			next(w, r)
		}
	}
}

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = page.Execute(w, struct {
		CSRF, Version string
		ReadOnly      bool
	}{s.csrf, s.cfg.Version, s.cfg.ReadOnly})
}
