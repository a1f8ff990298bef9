package procs

import (
	"fmt"

	"github.com/natty-go/natty/nattytest"
)

// routes are the links between servers: routes[i][j] leads from server i to server j,
// and is nil for i == j.
type routes [servers][servers]*nattytest.Link

func (f *Fleet) addRoutes(ports [servers]int) {
	for i := range f.routes {
		for j, port := range ports {
			if i != j {
				f.routes[i][j] = nattytest.Proxy(&f.host, fmt.Sprintf("127.0.0.1:%d", port))
			}
		}
	}
}

// each calls out for the links that server i has opened, and in for those to it.
func (r *routes) each(i int, out, in func(*nattytest.Link)) {
	for j := range r {
		if j != i {
			out(r[i][j])
			in(r[j][i])
		}
	}
}

// Isolate holds what a server and the others send each other.
func (f *Fleet) Isolate(s *Server) {
	f.routes.each(s.number, (*nattytest.Link).Freeze, (*nattytest.Link).Freeze)
}

// Mute holds what a server sends to the others. It receives what they send.
func (f *Fleet) Mute(s *Server) {
	f.routes.each(s.number, (*nattytest.Link).FreezeRequests, (*nattytest.Link).FreezeReplies)
}

// Rejoin ends Isolate and Mute.
func (f *Fleet) Rejoin(s *Server) {
	f.routes.each(s.number, (*nattytest.Link).Thaw, (*nattytest.Link).Thaw)
}
