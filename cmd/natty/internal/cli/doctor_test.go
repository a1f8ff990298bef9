package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

func TestDoctorFindsNothingInAHealthyAccount(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := fixture.Client(t, node.URL())
	fixture.Streams(t, c)
	require.NoError(t, c.Publish(t.Context(), "orders.new", []byte("1")))
	fixture.Consume(t, c, 1, func(context.Context, *nats.Msg) error { return nil })
	out, errs, code := nattyCmd(t, "doctor", "--server", node.URL()).result()
	assert.Equal(t, 0, code, errs)
	assert.Equal(t, "Nothing is wrong, as far as natty doctor looks.\n", out)
}

func TestDoctorDoesNotTakeASchedulesHolderForAMessageThatNobodyConsumes(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := fixture.Client(t, node.URL())
	for name, retention := range map[string]jetstream.RetentionPolicy{"jobs": jetstream.WorkQueuePolicy, "daily": jetstream.LimitsPolicy} {
		fixture.Stream(t, c, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".>"}, Retention: retention, AllowMsgSchedules: true})
		require.NoError(t, c.Schedule(t.Context(), natty.Schedule{ID: "report", Cron: "@yearly", Msg: nats.NewMsg(name + ".report")}))
		_, err := c.JetStream().CreateConsumer(t.Context(), name, jetstream.ConsumerConfig{
			Durable: "d", FilterSubject: name + ".>", AckPolicy: jetstream.AckExplicitPolicy,
		})
		require.NoError(t, err)
	}
	out, errs, code := nattyCmd(t, "doctor", "--server", node.URL()).result()
	assert.Equal(t, 0, code, errs)
	assert.Equal(t, "Nothing is wrong, as far as natty doctor looks.\n", out)
}

// sickness is an account with one of each.
func sickness(t *testing.T, node *nattytest.Node) {
	t.Helper()
	ctx := t.Context()
	c := fixture.Client(t, node.URL())
	fixture.Streams(t, c)
	fixture.Letters(t, c, 2)
	fixture.Stream(t, c, jetstream.StreamConfig{
		Name: "JOBS", Subjects: []string{"jobs.>"}, Retention: jetstream.WorkQueuePolicy, MaxMsgs: 3, Discard: jetstream.DiscardNew,
	})
	js := c.JetStream()
	consumer := func(stream string, cfg jetstream.ConsumerConfig) jetstream.Consumer {
		cfg.AckPolicy = jetstream.AckExplicitPolicy
		made, err := js.CreateOrUpdateConsumer(ctx, stream, cfg)
		require.NoError(t, err)
		return made
	}
	consumer("JOBS", jetstream.ConsumerConfig{Durable: "mailer", FilterSubject: "jobs.mail"})
	for i := range 3 {
		require.NoError(t, c.Publish(ctx, "jobs.fax", fmt.Append(nil, i)))
	}
	consumer("ORDERS", jetstream.ConsumerConfig{Durable: "typo", FilterSubject: "orders.nwe"})
	consumer("ORDERS", jetstream.ConsumerConfig{Durable: "nobody", MaxDeliver: 5, InactiveThreshold: time.Hour})
	full := consumer("ORDERS", jetstream.ConsumerConfig{Durable: "full", MaxAckPending: 1})
	batch, err := full.Fetch(1)
	require.NoError(t, err)
	require.NotNil(t, <-batch.Messages())
	pause := time.Now().Add(time.Hour)
	consumer("ORDERS", jetstream.ConsumerConfig{Durable: "paused", PauseUntil: &pause})
	fixture.Stream(t, c, jetstream.StreamConfig{Name: "MOVED", Subjects: []string{"moved.>", "gone.>"}})
	consumer("MOVED", jetstream.ConsumerConfig{Durable: "left", FilterSubject: "gone.x"})
	_, err = js.UpdateStream(ctx, jetstream.StreamConfig{Name: "MOVED", Subjects: []string{"moved.>"}})
	require.NoError(t, err)
}

func TestDoctorExplainsEachSickness(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	sickness(t, node)
	service := filepath.Join(t.TempDir(), "service.json")
	require.NoError(t, os.WriteFile(service, []byte(`{"name": "billing", "consumers": [
		{"name": "orders", "type": "nats", "nats": {"stream_name": "ORDERS", "consumer_group": "nobody", "subjects": ["orders.>"], "ack_wait": "3s"}},
		{"name": "fresh", "type": "nats", "nats": {"subjects": ["orders.new"]}},
		{"name": "letters", "type": "nats", "nats": {"stream_name": "NONE", "consumer_group": "x", "max_deliver": 3, "dead_letter": "grave.x"}}
	]}`), 0o600))
	out, errs, code := nattyCmd(t, "doctor", "--server", node.URL(), "--service", service).result()
	assert.Equal(t, 1, code)
	assert.Empty(t, errs)
	for _, says := range []string{
		"ERROR    consumer nobody of stream ORDERS: messages wait, and nobody asks for them (2 pending)\n",
		"ERROR    consumer full of stream ORDERS: in flight are 1, which is max_ack_pending",
		"WARNING  consumer paused of stream ORDERS: paused for another ",
		"WARNING  consumer typo of stream ORDERS: its filter orders.nwe matches none of the 2 messages",
		"ERROR    consumer left of stream MOVED: its filter gone.x matches nothing: the stream stores moved.>",
		"ERROR    stream JOBS: is a work queue, and no consumer matches 3 of its messages, on jobs.fax",
		"ERROR    stream JOBS: 100% of max_msgs are used; then publishing fails",
		"WARNING  consumer nobody of stream ORDERS: max_deliver is 5: ",
		"WARNING  consumer nobody of stream ORDERS: inactive_threshold is 1h0m0s: ",
		"WARNING  subject dead.orders: dead letters: 2; the newest says: no such customer",
		"WARNING  service consumer orders: ack_wait is 30s, and 3s in the file",
		"WARNING  service consumer fresh: its durable billing_orders-new is not on stream ORDERS",
		"ERROR    service consumer letters: its stream NONE does not exist",
		"ERROR    service consumer letters: its dead-letter subject grave.x is in no stream",
	} {
		assert.Contains(t, out, says)
	}
	var found []map[string]string
	out, _, code = nattyCmd(t, "doctor", "--server", node.URL(), "--json").result()
	assert.Equal(t, 1, code)
	require.NoError(t, json.Unmarshal([]byte(out), &found))
	for _, f := range found {
		assert.NotEmpty(t, f["remedy"], f)
	}
}

func TestDoctorSaysWhatThisUserMayNotDo(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Users = []*server.User{{Username: "ops", Password: "secret"}, {
			Username: "reader", Password: "secret",
			Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.LIST.>"}}},
		}}
	}))
	at := func(user string) string { return "nats://" + user + ":secret@" + node.URL()[len("nats://"):] }
	c := fixture.Client(t, at("ops"))
	fixture.Streams(t, c)
	require.NoError(t, c.Publish(t.Context(), "orders.new", []byte("1")))
	fixture.Consume(t, c, 1, func(context.Context, *nats.Msg) error { return nil })
	start := time.Now()
	out, _, code := nattyCmd(t, "doctor", "--server", at("reader")).result()
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "WARNING  user: may not publish to $JS.API.CONSUMER.LIST.ORDERS, so that part of the account was not examined")
	assert.Less(t, time.Since(start), 5*time.Second, "it does not wait for answers that do not come")
	letters, errs, code := nattyCmd(t, "dead", "ls", "--server", at("reader")).result()
	assert.Equal(t, 0, code, "what could not be read has no dead letters")
	assert.Equal(t, "There are no dead letters.\n", letters)
	assert.Contains(t, errs, "the consumers of stream ORDERS cannot be read")
	assert.NotContains(t, out, "secret")
}

func TestDoctorSaysWhatTheServiceMayNotDo(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Users = []*server.User{{Username: "ops", Password: "secret"}, {
			Username: "billing", Password: "secret",
			Permissions: &server.Permissions{Publish: &server.SubjectPermission{
				Allow: []string{"$JS.API.>", "$SYS.REQ.USER.INFO"}, Deny: []string{"$JS.API.CONSUMER.MSG.NEXT.>"},
			}},
		}}
	}))
	at := func(user string) string { return "nats://" + user + ":secret@" + node.URL()[len("nats://"):] }
	c := fixture.Client(t, at("ops"))
	fixture.Streams(t, c)
	require.NoError(t, c.Publish(t.Context(), "orders.new", []byte("1")))
	fixture.Consume(t, c, 1, func(context.Context, *nats.Msg) error { return nil })
	service := filepath.Join(t.TempDir(), "service.json")
	require.NoError(t, os.WriteFile(service, []byte(`{"name": "billing", "consumers": [
		{"name": "orders", "type": "nats", "nats": {"stream_name": "ORDERS", "consumer_group": "billing", "subjects": ["orders.>"],
			"max_deliver": 3, "dead_letter": "dead.orders"}}
	]}`), 0o600))
	out, _, code := nattyCmd(t, "doctor", "--server", at("ops"), "--service", service).result()
	assert.Equal(t, 0, code, out)
	out, _, code = nattyCmd(t, "doctor", "--server", at("billing"), "--service", service).result()
	assert.Equal(t, 1, code)
	for _, subject := range []string{"dead.orders", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing", "$JS.ACK.ORDERS.billing.>"} {
		assert.Contains(t, out, "ERROR    service consumer orders: the user billing may not publish to "+subject+"\n")
	}
	assert.Contains(t, out, "\n3 findings.\n")
	assert.NotContains(t, out, "secret")
}

func TestDoctorSeesAnAccountThatIsNearlyFull(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	require.NoError(t, node.Server().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
		"": {MaxStore: 100_000, MaxMemory: -1, MaxStreams: 2, MaxConsumers: -1},
	}))
	c := fixture.Client(t, node.URL())
	fixture.Stream(t, c, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	require.NoError(t, c.Publish(t.Context(), "orders.new", make([]byte, 80_000)))
	out, _, code := nattyCmd(t, "doctor", "--server", node.URL()).result()
	assert.Equal(t, 0, code, out)

	fixture.Stream(t, c, jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})
	require.NoError(t, c.Publish(t.Context(), "orders.new", make([]byte, 15_000)))
	out, _, code = nattyCmd(t, "doctor", "--server", node.URL()).result()
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "ERROR    account: 95% of its file storage are used; at the limit publishing fails\n")
	assert.Contains(t, out, "ERROR    account: 100% of its streams are used; at the limit making a stream or a bucket fails\n")
	assert.Contains(t, out, "\n2 findings.\n")
}

func TestDoctorSeesReplicasThatAreBehind(t *testing.T) {
	t.Parallel()
	nodes := nattytest.Cluster(t)
	c := fixture.Client(t, nodes.URLs()[0])
	fixture.Stream(t, c, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Replicas: 3})
	require.NoError(t, c.Publish(t.Context(), "orders.new", []byte("1")))
	leader := nodes.StreamLeader("ORDERS")
	var follower *nattytest.Node
	for _, node := range nodes.Nodes() {
		if node != leader {
			follower = node
		}
	}
	name := follower.Server().Name()
	follower.Stop()
	says := "ERROR    stream ORDERS: its replica on " + name + " is behind or offline\n"
	require.Eventually(t, func() bool {
		out, _, code := nattyCmd(t, "doctor", "--server", leader.URL()).result()
		return code == 1 && strings.Contains(out, says)
	}, patience, 100*time.Millisecond, says)

	require.NoError(t, follower.Restart())
	require.Eventually(t, func() bool {
		_, _, code := nattyCmd(t, "doctor", "--server", leader.URL()).result()
		return code == 0
	}, patience, 100*time.Millisecond, "it has caught up")
}

func TestDoctorOfAWrongServiceFileSaysWhereItIsWrong(t *testing.T) {
	t.Parallel()
	service := filepath.Join(t.TempDir(), "service.json")
	require.NoError(t, os.WriteFile(service, []byte(`{"name": "x", "consumer": []}`), 0o600))
	_, errs, code := nattyCmd(t, "doctor", "--service", service).result()
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "service.json")
}
