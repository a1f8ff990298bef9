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
	// electWithin bounds every wait for a leader. Elections take 4 to 9 seconds after a leader that vanished, and a loaded
	// machine may need two.
	electWithin = 30 * time.Second
	// electQuickly is more than the first election takes if it succeeds, electTries how often it may fail.
	electQuickly = time.Second
	electTries   = 3
	settleWithin = 2 * time.Second
)

// Nodes is a cluster of three servers with JetStream. It is safe for concurrent use; the methods that wait end the test with
// t.Fatal when they wait in vain, so they must be called on the test's own goroutine.
type Nodes struct {
	t     testing.TB
	nodes []*Node
}

// Cluster starts a cluster of three servers for the test t, each like one of [Server], with the same options and with
// certificates of one authority. When it returns, the cluster has a leader and every node is current; this takes less than a
// second, and several on a busy machine. Servers do not tell clients of each other's addresses, so that a client of a
// [Proxy] cannot get around it: a client that is to survive the loss of a node needs all of [Nodes.URLs]. The cluster is
// stopped and its stores removed in t's Cleanup.
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
		ns.settle()
		if err := errors.Join(ns.each((*Node).Close), os.RemoveAll(dir)); err != nil {
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

// plan makes the nodes and settles their ports, so that each knows the routes to the others before the first one starts:
// JetStream begins its first election at once, and only in a server that has routes.
func (ns *Nodes) plan(config *config, dir string) error {
	creds, err := config.issue(dir)
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
			name: name, config: config, creds: creds, store: filepath.Join(dir, name), ports: []*port{reserved},
			cluster: server.ClusterOpts{Name: "nattytest-" + id, Host: loopback, Port: reserved.number, NoAdvertise: true},
		})
		routes = append(routes, fmt.Sprintf("nats://%s:%d", loopback, reserved.number))
	}
	for _, n := range ns.nodes {
		n.routes = strings.Join(routes, ",")
	}
	return nil
}

// start starts the nodes, one after the other: routes that two nodes open to each other at the same time are closed as
// duplicates, and tried again a second later. Nodes campaign within 0.8 seconds, and a leader of empty nodes needs every vote.
// When two of them campaign at the same time, as they do on a busy machine, the next election is 4 to 9 seconds away: beginning
// again with empty stores is faster, and safe because no client has been here.
func (ns *Nodes) start() error {
	for _, n := range ns.nodes {
		if err := n.firstStart(); err != nil {
			return err
		}
	}
	for range electTries {
		if waitFor(electQuickly, func() bool { return ns.find((*server.Server).JetStreamIsLeader) != nil }) {
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

// settle gives replicas that are still being made the time to be there: a server that is stopped meanwhile leaves their
// stores open, with a goroutine in each, and the test would be blamed for that.
func (ns *Nodes) settle() {
	running := 0
	for _, n := range ns.nodes {
		if srv := n.Server(); srv != nil && srv.Running() {
			running++
		}
	}
	if running > clusterSize/2 { // fewer never agree
		waitFor(settleWithin, func() bool { return ready(ns.nodes) })
	}
}

// each runs f for all nodes at the same time and joins the errors.
func (ns *Nodes) each(f func(*Node) error) error {
	errs := make([]error, len(ns.nodes))
	var work sync.WaitGroup
	for i, n := range ns.nodes {
		work.Go(func() { errs[i] = f(n) })
	}
	work.Wait()
	return errors.Join(errs...)
}

// Nodes returns the three nodes, always in the same order, stopped ones too.
func (ns *Nodes) Nodes() []*Node { return append([]*Node(nil), ns.nodes...) }

// URLs returns the addresses of all nodes, in the order of Nodes.
func (ns *Nodes) URLs() []string {
	urls := make([]string, len(ns.nodes))
	for i, n := range ns.nodes {
		urls[i] = n.URL()
	}
	return urls
}

// WaitReady waits until the running nodes agree on a leader of the cluster, of every stream and of every consumer, these
// leaders are running, and each node is healthy: it has caught up with all that it holds a replica of. At least two nodes
// must be running. After a restart this takes about two seconds; after the whole cluster was down, a few more.
func (ns *Nodes) WaitReady() {
	ns.t.Helper()
	ns.await("the cluster to be ready", func() bool { return ready(ns.nodes) })
}

// MetaLeader returns the leader of the cluster, which places streams and consumers. It waits for one.
func (ns *Nodes) MetaLeader() *Node {
	ns.t.Helper()
	return ns.leader("the cluster", (*server.Server).JetStreamIsLeader)
}

// StreamLeader returns the node that leads the stream, whichever account it is in. It waits for one, also for a stream that
// does not exist yet.
func (ns *Nodes) StreamLeader(stream string) *Node {
	ns.t.Helper()
	return ns.leader("stream "+stream, func(srv *server.Server) bool {
		return inAnyAccount(srv, func(account string) bool { return srv.JetStreamIsStreamLeader(account, stream) })
	})
}

// ConsumerLeader returns the node that leads the consumer of the stream, whichever account they are in. It waits for one,
// also for a consumer that does not exist yet.
func (ns *Nodes) ConsumerLeader(stream, consumer string) *Node {
	ns.t.Helper()
	return ns.leader("consumer "+consumer+" of stream "+stream, func(srv *server.Server) bool {
		return inAnyAccount(srv, func(account string) bool { return srv.JetStreamIsConsumerLeader(account, stream, consumer) })
	})
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
	if !waitFor(electWithin, ready) {
		ns.t.Fatalf("nattytest: waited %v for %s", electWithin, what)
	}
}

func waitFor(limit time.Duration, ready func() bool) bool {
	for deadline := time.Now().Add(limit); !ready(); time.Sleep(5 * pollEvery) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// inAnyAccount asks for the default account first: it is nearly always the one.
func inAnyAccount(srv *server.Server, leads func(account string) bool) bool {
	if leads(server.DEFAULT_GLOBAL_ACCOUNT) {
		return true
	}
	accounts, err := srv.Accountz(nil)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(accounts.Accounts, leads)
}
