package nattytest_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

func requireStored(ctx context.Context, t *testing.T, stream jetstream.Stream, want uint64) {
	t.Helper()
	requireInTime(ctx, t, func(ctx context.Context) error {
		info, err := stream.Info(ctx)
		if err == nil {
			require.Equal(t, want, info.State.Msgs)
		}
		return err
	})
}

func TestReplicatedStreamSurvivesTheLossOfItsLeader(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	ns := nattytest.Cluster(t)
	nc := connect(t, strings.Join(ns.URLs(), ","))
	stream := newStream(ctx, t, nc, 3)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.Publish(ctx, "orders.new", []byte("one"))
	require.NoError(t, err)

	leader := ns.StreamLeader("ORDERS")
	leader.Stop()
	next := ns.StreamLeader("ORDERS")
	require.NotSame(t, leader, next)
	requireInTime(ctx, t, func(ctx context.Context) error {
		_, err := js.Publish(ctx, "orders.new", []byte("two"), jetstream.WithMsgID("two"))
		return err
	})

	require.NoError(t, leader.Restart())
	ns.WaitReady()
	requireStored(ctx, t, stream, 2)
	require.Eventually(t, func() bool {
		return leader.Server().JetStreamIsStreamCurrent(server.DEFAULT_GLOBAL_ACCOUNT, "ORDERS")
	}, patience, 10*time.Millisecond)
}

func TestConsumerLeaderIsTheNodeThatTheServerNames(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// The leaders are found in an account other than the default one, too.
	ns := nattytest.Cluster(t, nattytest.Options(func(o *server.Options) {
		account := server.NewAccount("SHOP")
		o.Accounts = append(o.Accounts, account)
		o.Users = []*server.User{{Username: "shop", Password: "s", Account: account}}
		o.JetStreamLimits.MaxAckPending = 7
	}))
	for _, n := range ns.Nodes() {
		account, err := n.Server().LookupAccount("SHOP")
		require.NoError(t, err)
		require.NoError(t, account.EnableJetStream(nil, nil))
	}
	nc := connect(t, ns.URLs()[0], nats.UserInfo("shop", "s"))
	stream := newStream(ctx, t, nc, 3)
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "bill"})
	require.NoError(t, err)

	for name, ask := range map[string]func() (string, *nattytest.Node){
		"consumer": func() (string, *nattytest.Node) {
			info, err := consumer.Info(ctx)
			require.NoError(t, err)
			return info.Cluster.Leader, ns.ConsumerLeader("ORDERS", "bill")
		},
		"stream": func() (string, *nattytest.Node) {
			info, err := stream.Info(ctx)
			require.NoError(t, err)
			return info.Cluster.Leader, ns.StreamLeader("ORDERS")
		},
	} {
		named, found := ask()
		require.Equal(t, named, found.Server().Name(), name)
	}
	info, err := consumer.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, 7, info.Config.MaxAckPending)
}

func TestClusterSurvivesTheLossOfItsMetaLeader(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ns := nattytest.Cluster(t)
	leader := ns.MetaLeader()
	leader.Stop()
	require.NotSame(t, leader, ns.MetaLeader())
	nc := connect(t, strings.Join(ns.URLs(), ","))
	newStream(ctx, t, nc, 1)
}

func TestClusterComesBackAfterAllOfItWasDown(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	ns := nattytest.Cluster(t)
	nc := connect(t, strings.Join(ns.URLs(), ","))
	stream := newStream(ctx, t, nc, 3)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.Publish(ctx, "orders.new", []byte("one"))
	require.NoError(t, err)
	urls := ns.URLs()
	for _, n := range ns.Nodes() {
		n.Stop()
	}
	for _, n := range ns.Nodes() {
		require.NoError(t, n.Restart())
	}
	ns.WaitReady()
	require.Equal(t, urls, ns.URLs())
	requireStored(ctx, t, stream, 1)
}

func TestNodesDoNotTellClientsOfEachOther(t *testing.T) {
	t.Parallel()
	ns := nattytest.Cluster(t)
	l := nattytest.Proxy(t, ns.URLs()[0])
	nc := connect(t, l.URL())
	require.NoError(t, nc.Flush())
	require.Empty(t, nc.DiscoveredServers())
	require.Equal(t, []string{l.URL()}, nc.Servers())
	require.NotEmpty(t, nc.ConnectedClusterName())
}

func TestNodesShareOneAuthority(t *testing.T) {
	t.Parallel()
	ns := nattytest.Cluster(t, nattytest.ClientCerts())
	files := ns.Nodes()[0].Files()
	for _, n := range ns.Nodes() {
		require.Equal(t, files, n.Files())
		nc := connect(t, n.URL(), nats.RootCAs(files.CA), nats.ClientCert(files.Cert, files.Key))
		require.NoError(t, nc.Flush())
	}
}
