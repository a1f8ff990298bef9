package nattytest

import (
	"net/http"
	"net/http/httptest"

	"github.com/nats-io/nats-server/v2/server"
)

// ready is the condition that [Nodes.WaitReady] waits for.
func ready(nodes []*Node) bool {
	leaders, running := make(leaderMap), runningByName(nodes)
	for _, n := range running {
		srv := n.Server()
		// An account may have a route connection of its own, while elections use the
		// first one. A request of such an account is lost, without an answer, until
		// that connection is open.
		if srv.NumRoutes() < (len(running)-1)*int(n.routePool.Load()) {
			return false
		}
		// A leader places no replica on a server that it has not heard of yet.
		if len(srv.ActivePeers()) < len(running) {
			return false
		}
		if !srv.JetStreamIsCurrent() || !healthy(srv) || !leaders.add(srv) {
			return false
		}
		if srv.JetStreamIsLeader() && len(srv.JetStreamClusterPeers()) < len(nodes) {
			return false
		}
	}
	if !membershipCommitted(running, len(nodes)) {
		return false
	}
	for _, leader := range leaders {
		if running[leader] == nil {
			return false
		}
	}
	return len(leaders) > 0
}

func runningByName(nodes []*Node) map[string]*Node {
	running := make(map[string]*Node)
	for _, n := range nodes {
		if srv := n.Server(); srv != nil && srv.Running() {
			running[srv.Name()] = n
		}
	}
	return running
}

// membershipCommitted reports whether every server knows that all others are voters.
// The first leader adds them one by one. If it stops before the last server has heard
// of all, an election takes several rounds. Where two servers count as the whole
// cluster, it never ends.
func membershipCommitted(running map[string]*Node, size int) bool {
	committed := make(map[uint64]bool)
	for _, n := range running {
		groupsByAccount := n.Server().Raftz(&server.RaftzOptions{GroupFilter: "_meta_"})
		if groupsByAccount == nil { // the server is shutting down
			return false
		}
		for _, groups := range *groupsByAccount {
			meta := groups["_meta_"]
			if meta.Size < size || meta.PIndex != meta.Committed {
				return false
			}
			committed[meta.Committed] = true
		}
	}
	return len(committed) == 1
}

// leaderMap maps the cluster (""), each stream and each consumer to the name of the
// server that leads it.
type leaderMap map[string]string

// add adds the leaders that srv knows. It returns false if one has no leader, or if
// another server named a different one. The health endpoint does not help here: it
// calls a replica without a leader healthy.
func (leaders leaderMap) add(srv *server.Server) bool {
	view, err := srv.Jsz(&server.JSzOptions{Streams: true, Consumer: true})
	if err != nil || view.Meta == nil {
		return false
	}
	same := leaders.set("", &server.ClusterInfo{Leader: view.Meta.Leader})
	for _, account := range view.AccountDetails {
		for _, stream := range account.Streams {
			key := account.Name + "\n" + stream.Name
			same = leaders.set(key, stream.Cluster) && same
			for _, consumer := range stream.Consumer {
				same = leaders.set(key+"\n"+consumer.Name, consumer.Cluster) && same
			}
		}
	}
	return same
}

func (leaders leaderMap) set(key string, info *server.ClusterInfo) bool {
	if info == nil || info.Leader == "" {
		return false
	}
	if other, ok := leaders[key]; ok {
		return other == info.Leader
	}
	leaders[key] = info.Leader
	return true
}

// healthy asks the server's health endpoint, without HTTP. Only that endpoint tells
// whether every replica has caught up.
func healthy(srv *server.Server) bool {
	answer := httptest.NewRecorder()
	srv.HandleHealthz(answer, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	return answer.Code == http.StatusOK
}
