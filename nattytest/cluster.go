package nattytest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	clusterSize = 3
	// electionTimeout bounds every wait for a leader. An election after the loss of a
	// leader takes 4 to 9 seconds, and a loaded machine may need two elections.
	electionTimeout = 30 * time.Second
	// firstElectionTimeout is longer than a first election that succeeds, and
	// maxFirstElections is how often the first election may fail.
	firstElectionTimeout = time.Second
	maxFirstElections    = 3
	// replicaTimeout bounds how long Cleanup waits for replicas that are being created.
	replicaTimeout = 2 * time.Second
)

// Nodes is a cluster of three servers with JetStream. It is safe for concurrent use.
// Its methods that wait call t.Fatal at their timeout, so call them on the test's own
// goroutine.
type Nodes struct {
	t     testing.TB
	nodes []*Node
}

// Cluster starts a cluster of three servers for the test t. Each takes the same options
// as one of [Server], and one authority signs the certificates of all three. When
// Cluster returns, the cluster has a leader and every node is current. This takes less
// than a second, and several seconds on a busy machine.
//
// Servers do not advertise each other's addresses to clients, so a client of a [Proxy]
// cannot bypass it. A client that must survive the loss of a node needs all of
// [Nodes.URLs]. The Cleanup of t stops the cluster and removes its stores.
func Cluster(t testing.TB, opts ...Option) *Nodes {
	t.Helper()
	config, err := newConfig(opts)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "nattytest-")
	if err != nil {
		t.Fatal(err)
	}
	ns := &Nodes{t: t}
	t.Cleanup(func() {
		ns.awaitReplicas()
		if err := errors.Join(ns.closeAll(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := ns.plan(config, dir); err != nil {
		t.Fatal(err)
	}
	if err := ns.start(); err != nil {
		t.Fatal(err)
	}
	ns.WaitReady()
	return ns
}

// plan makes the nodes and reserves their cluster ports, so that each node knows the
// routes to the others before the first one starts. JetStream begins its first election
// when the server starts, and only in a server that has routes.
func (ns *Nodes) plan(config *config, dir string) error {
	certs, err := config.issue(dir)
	if err != nil {
		return err
	}
	id := rand.Text()[:12]
	var routes []string
	for i := range clusterSize {
		reserved, err := reservePort()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("nattytest-%s-%d", id, i+1)
		ns.nodes = append(ns.nodes, &Node{
			name: name, config: config, certs: certs, store: filepath.Join(dir, name), ports: []*port{reserved},
			cluster: server.ClusterOpts{
				Name: "nattytest-" + id, Host: loopback, Port: reserved.number, NoAdvertise: true,
			},
		})
		routes = append(routes, fmt.Sprintf("nats://%s:%d", loopback, reserved.number))
	}
	for _, n := range ns.nodes {
		n.routes = strings.Join(routes, ",")
	}
	return nil
}

// start starts the nodes one after the other. Two nodes that open routes to each other
// at the same time close them as duplicates and retry a second later.
//
// Nodes campaign within 0.8 seconds, and a leader of empty nodes needs every vote. On a
// busy machine two of them may campaign at the same time. The next election is then 4
// to 9 seconds away, so a restart with empty stores is faster. No client has stored
// anything yet.
func (ns *Nodes) start() error {
	for _, n := range ns.nodes {
		if err := n.firstStart(); err != nil {
			return err
		}
	}
	for range maxFirstElections {
		elected := func() bool { return ns.find((*server.Server).JetStreamIsLeader) != nil }
		if waitFor(firstElectionTimeout, elected) {
			return nil
		}
		for _, n := range ns.nodes {
			n.Stop()
		}
		for _, n := range ns.nodes {
			if err := errors.Join(os.RemoveAll(n.store), n.Restart()); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitReplicas gives the servers time to finish replicas that they are creating. A
// server that stops meanwhile leaks a goroutine for each of their stores, and a leak
// check would blame the test.
func (ns *Nodes) awaitReplicas() {
	if len(runningByName(ns.nodes)) > clusterSize/2 { // without a majority, they never agree
		waitFor(replicaTimeout, func() bool { return ready(ns.nodes) })
	}
}

// closeAll closes all nodes at the same time.
func (ns *Nodes) closeAll() error {
	errs := make([]error, len(ns.nodes))
	var work sync.WaitGroup
	for i, n := range ns.nodes {
		work.Go(func() { errs[i] = n.Close() })
	}
	work.Wait()
	return errors.Join(errs...)
}

// Nodes returns the three nodes, stopped ones too, always in the same order.
func (ns *Nodes) Nodes() []*Node { return slices.Clone(ns.nodes) }

// URLs returns the addresses of all nodes, in the order of Nodes.
func (ns *Nodes) URLs() []string {
	urls := make([]string, len(ns.nodes))
	for i, n := range ns.nodes {
		urls[i] = n.URL()
	}
	return urls
}

// WaitReady waits until all of this is true of the running nodes:
//   - They agree on the leader of the cluster, of every stream and of every consumer.
//   - All these leaders are running.
//   - Each node is healthy: its replicas have caught up.
//
// At least two nodes must be running. After a restart of a node this takes about two
// seconds, and a few more after the whole cluster was down.
func (ns *Nodes) WaitReady() {
	ns.t.Helper()
	ns.await("the cluster to be ready", func() bool { return ready(ns.nodes) })
}

// MetaLeader returns the leader of the cluster, which places streams and consumers. It
// waits for one.
func (ns *Nodes) MetaLeader() *Node {
	ns.t.Helper()
	return ns.leader("the cluster", (*server.Server).JetStreamIsLeader)
}

// StreamLeader returns the node that leads the stream, in whichever account the stream
// is. It waits for one, also when the stream does not exist yet.
func (ns *Nodes) StreamLeader(stream string) *Node {
	ns.t.Helper()
	return ns.leader("stream "+stream, inAnyAccount(func(srv *server.Server, account string) bool {
		return srv.JetStreamIsStreamLeader(account, stream)
	}))
}

// ConsumerLeader returns the node that leads the consumer of the stream, in whichever
// account they are. It waits for one, also when the consumer does not exist yet.
func (ns *Nodes) ConsumerLeader(stream, consumer string) *Node {
	ns.t.Helper()
	of := "consumer " + consumer + " of stream " + stream
	return ns.leader(of, inAnyAccount(func(srv *server.Server, account string) bool {
		return srv.JetStreamIsConsumerLeader(account, stream, consumer)
	}))
}

// inAnyAccount tries the default account first, because it is nearly always the right
// one.
func inAnyAccount(leads func(srv *server.Server, account string) bool) func(*server.Server) bool {
	return func(srv *server.Server) bool {
		if leads(srv, server.DEFAULT_GLOBAL_ACCOUNT) {
			return true
		}
		accounts, err := srv.Accountz(nil)
		return err == nil && slices.ContainsFunc(accounts.Accounts, func(account string) bool {
			return leads(srv, account)
		})
	}
}

func (ns *Nodes) leader(of string, leads func(*server.Server) bool) *Node {
	ns.t.Helper()
	var leader *Node
	ns.await("a leader of "+of, func() bool {
		leader = ns.find(leads)
		return leader != nil
	})
	return leader
}

// find returns the first running node that leads, or nil.
func (ns *Nodes) find(leads func(*server.Server) bool) *Node {
	for _, n := range ns.nodes {
		if srv := n.Server(); srv.Running() && leads(srv) {
			return n
		}
	}
	return nil
}

func (ns *Nodes) await(what string, ready func() bool) {
	ns.t.Helper()
	if !waitFor(electionTimeout, ready) {
		ns.t.Fatalf("nattytest: waited %v for %s", electionTimeout, what)
	}
}

func waitFor(limit time.Duration, ready func() bool) bool {
	for deadline := time.Now().Add(limit); !ready(); time.Sleep(5 * pollInterval) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}
