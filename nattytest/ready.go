package nattytest

import (
	"net/http"

	"github.com/nats-io/nats-server/v2/server"
)

// ready is the condition that [Nodes.WaitReady] waits for.
func ready(nodes []*Node) bool {
	leaders, running := make(map[string]string), make(map[string]*Node)
	for _, n := range nodes {
		if srv := n.Server(); srv != nil && srv.Running() {
			running[srv.Name()] = n
		}
	}
	for _, n := range running {
		srv := n.Server()
		// Accounts have connections of their own between servers. Leaders are elected through the first one; a request of
		// another account is lost, with no answer, while its own is still being made.
		if srv.NumRoutes() < (len(running)-1)*int(n.links.Load()) {
			return false
		}
		// Until a leader has heard of a server, it places no replica there.
		if len(srv.ActivePeers()) < len(running) {
			return false
		}
		if !srv.JetStreamIsCurrent() || !healthy(srv) || !agrees(srv, leaders) {
			return false
		}
		if srv.JetStreamIsLeader() && len(srv.JetStreamClusterPeers()) < len(nodes) {
			return false
		}
	}
	if !settled(running, len(nodes)) {
		return false
	}
	for _, leader := range leaders {
		if running[leader] == nil {
			return false
		}
	}
	return len(leaders) > 0
}

// settled reports whether every server knows that all others are voters. The first leader adds them one by one: should it stop before
// the last one has heard, an election takes several rounds or, where two servers count as the whole cluster, never ends.
func settled(running map[string]*Node, size int) bool {
	committed := make(map[uint64]bool)
	for _, n := range running {
		seen := n.Server().Raftz(&server.RaftzOptions{GroupFilter: "_meta_"})
		if seen == nil { // it shuts down
			return false
		}
		for _, groups := range *seen {
			meta := groups["_meta_"]
			if meta.Size < size || meta.PIndex != meta.Committed {
				return false
			}
			committed[meta.Committed] = true
		}
	}
	return len(committed) == 1
}

// agrees adds to leaders who leads what as srv sees it, by the name of the server; false: another server sees it otherwise.
// The health endpoint does not tell: a replica without a leader is healthy to it.
func agrees(srv *server.Server, leaders map[string]string) bool {
	seen, err := srv.Jsz(&server.JSzOptions{Streams: true, Consumer: true})
	if err != nil || seen.Meta == nil {
		return false
	}
	same := agree(leaders, "", &server.ClusterInfo{Leader: seen.Meta.Leader})
	for _, account := range seen.AccountDetails {
		for _, stream := range account.Streams {
			key := account.Name + "\n" + stream.Name
			same = agree(leaders, key, stream.Cluster) && same
			for _, consumer := range stream.Consumer {
				same = agree(leaders, key+"\n"+consumer.Name, consumer.Cluster) && same
			}
		}
	}
	return same
}

func agree(leaders map[string]string, key string, info *server.ClusterInfo) bool {
	if info == nil || info.Leader == "" {
		return false
	}
	if other, ok := leaders[key]; ok {
		return other == info.Leader
	}
	leaders[key] = info.Leader
	return true
}

// healthy asks the server's health endpoint, without HTTP: it alone tells whether every replica has caught up.
func healthy(srv *server.Server) bool {
	request, err := http.NewRequest(http.MethodGet, "/healthz", nil)
	if err != nil {
		return false
	}
	answer := &status{header: make(http.Header), code: http.StatusOK}
	srv.HandleHealthz(answer, request)
	return answer.code == http.StatusOK
}

// status is an http.ResponseWriter that keeps the status code.
type status struct {
	header http.Header
	code   int
}

func (s *status) Header() http.Header         { return s.header }
func (s *status) Write(b []byte) (int, error) { return len(b), nil }
func (s *status) WriteHeader(code int)        { s.code = code }
