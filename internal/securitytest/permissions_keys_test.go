package securitytest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
)

// bucket makes a bucket with a key.
func bucket(e *env) {
	testkit.Bucket(e, e.root, jetstream.KeyValueConfig{Bucket: "B"})
	require.NoError(e, e.root.Put(testkit.Ctx(e), "B", "k", []byte(`"v"`)))
}

// indirect makes a bucket whose keys are read from the leader alone.
func indirect(e *env) {
	_, err := e.root.JetStream().CreateStream(testkit.Ctx(e), jetstream.StreamConfig{
		Name: "KV_B", Subjects: []string{"$KV.B.>"}, MaxMsgsPerSubject: 1, AllowRollup: true, DenyDelete: true, AllowDirect: false,
	})
	require.NoError(e, err)
	require.NoError(e, e.root.Put(testkit.Ctx(e), "B", "k", []byte("v")))
}

func revision(e *env) uint64 {
	entry, err := e.root.GetEntry(testkit.Ctx(e), "B", "k")
	require.NoError(e, err)
	return entry.Revision()
}

func get(e *env) error {
	_, err := e.app.Get(testkit.Ctx(e), "B", "k")
	return err
}

func typed(e *env) *natty.Bucket[string] {
	b, err := natty.NewBucket[string](e.app, natty.BucketConfig{Bucket: "B"})
	require.NoError(e, err)
	return b
}

var (
	// These follow a bucket with a consumer of their own.
	follow = append(publish("$JS.API.STREAM.INFO.KV_<bucket>", "$JS.API.CONSUMER.CREATE.KV_<bucket>.*.$KV.<bucket>.>", "$JS.API.CONSUMER.MSG.NEXT.KV_<bucket>.*"),
		need{subject: "$JS.API.CONSUMER.DELETE.KV_<bucket>.*", lost: "the server removes the consumer by itself, some time after it was used"})
	putNew = publish("$KV.<bucket>.<key>", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.KV_<bucket>", "$JS.API.STREAM.CREATE.KV_<bucket>", "$JS.API.INFO")
)

var keys = []row{
	{
		calls: "`Get`, `GetEntry`, `Bucket.Get`", needs: publish("$JS.API.DIRECT.GET.KV_<bucket>.$KV.<bucket>.<key>"),
		prepare: bucket, call: get,
	},
	{
		calls: "`Get`, `GetEntry`, `Bucket.Get`", when: "a bucket without direct reads",
		needs:   publish("$JS.API.DIRECT.GET.KV_<bucket>.$KV.<bucket>.<key>", "$JS.API.STREAM.MSG.GET.KV_<bucket>"),
		prepare: indirect, call: get,
	},
	{
		calls: "`Put`, `Bucket.Put`", needs: and(publish("$KV.<bucket>.<key>"), keyResend...), prepare: bucket,
		call: func(e *env) error { return e.app.Put(testkit.Ctx(e), "B", "k", nil) },
	},
	{
		calls: "`Put`, `Bucket.Put`", when: "makes the bucket", needs: putNew,
		call: func(e *env) error { return e.app.Put(e.Context(), "B", "k", nil) },
	},
	{
		calls: "`Put`, `Create`", when: "with a TTL", needs: publish("$KV.<bucket>.<key>", "$JS.API.STREAM.INFO.KV_<bucket>"), prepare: bucket,
		call: func(e *env) error { return e.app.Put(testkit.Ctx(e), "B", "k", nil, time.Hour) },
	},
	{
		calls: "`Create`, `Bucket.Create`", needs: and(publish("$KV.<bucket>.<key>"), keyResend...),
		prepare: func(e *env) { testkit.Bucket(e, e.root, jetstream.KeyValueConfig{Bucket: "B"}) },
		call:    func(e *env) error { return e.app.Create(testkit.Ctx(e), "B", "k", nil) },
	},
	{
		calls: "`Update`", needs: publish("$KV.<bucket>.<key>", "$JS.API.STREAM.MSG.GET.KV_<bucket>"), prepare: bucket,
		call: func(e *env) error {
			_, err := e.app.Update(testkit.Ctx(e), "B", "k", nil, revision(e))
			return err
		},
	},
	{
		calls: "`Refresh`", when: "the bucket has a TTL",
		needs: publish("$KV.<bucket>.<key>", "$JS.API.STREAM.MSG.GET.KV_<bucket>", "$JS.API.STREAM.INFO.KV_<bucket>"),
		prepare: func(e *env) {
			testkit.Bucket(e, e.root, jetstream.KeyValueConfig{Bucket: "B", TTL: time.Hour})
			require.NoError(e, e.root.Put(testkit.Ctx(e), "B", "k", nil))
		},
		call: func(e *env) error { return e.app.Refresh(testkit.Ctx(e), "B", "k") },
	},
	{
		calls: "`Refresh`", when: "the key has a TTL of its own", needs: publish("$KV.<bucket>.<key>", "$JS.API.STREAM.MSG.GET.KV_<bucket>"),
		prepare: func(e *env) {
			bucket(e)
			require.NoError(e, e.root.Put(testkit.Ctx(e), "B", "k", nil, time.Hour))
		},
		call: func(e *env) error { return e.app.Refresh(testkit.Ctx(e), "B", "k") },
	},
	{
		calls: "`Bucket.Modify`", needs: publish("$KV.<bucket>.<key>", "$JS.API.STREAM.MSG.GET.KV_<bucket>"), prepare: bucket,
		call: func(e *env) error {
			return typed(e).Modify(testkit.Ctx(e), "k", func(s string) (string, error) { return s + "!", nil })
		},
	},
	{
		calls: "`Delete`, `Bucket.Delete`", prepare: bucket,
		needs: and(publish("$KV.<bucket>.<key>"), need{
			subject: "$JS.API.STREAM.INFO.KV_<bucket>", noted: true, lost: "the marker of the deletion stays for ever, where the bucket could expire it",
		}),
		call: func(e *env) error { return e.app.Delete(testkit.Ctx(e), "B", "k") },
	},
	{
		calls: "`Keys`, `Bucket.Keys`", needs: follow, prepare: bucket,
		call: func(e *env) error {
			_, err := e.app.Keys(testkit.Ctx(e), "B")
			return err
		},
	},
	{
		calls: "`Watch`, `Bucket.Watch`", needs: follow, prepare: bucket,
		call: func(e *env) error {
			return e.run(func(ctx context.Context) error {
				for _, err := range e.app.Watch(ctx, "B", ">") {
					return err
				}
				return nil
			}, func() bool { return false })
		},
	},
	{
		calls: "`Bucket.Cached`", needs: follow, prepare: bucket,
		call: func(e *env) error {
			_, err := typed(e).Cached(testkit.Ctx(e))
			return err
		},
	},
	{
		calls: "`Status`", needs: publish("$JS.API.STREAM.INFO.KV_<bucket>"), prepare: bucket,
		call: func(e *env) error {
			_, err := e.app.Status(testkit.Ctx(e), "B")
			return err
		},
	},
	{
		calls: "`EnsureBucket`", when: "makes the bucket",
		needs: publish("$JS.API.STREAM.INFO.KV_<bucket>", "$JS.API.STREAM.CREATE.KV_<bucket>", "$JS.API.INFO"), call: ensureBucket,
	},
	{
		calls: "`EnsureBucket`", when: "changes the bucket",
		needs:   publish("$JS.API.STREAM.INFO.KV_<bucket>", "$JS.API.STREAM.UPDATE.KV_<bucket>"),
		prepare: bucket, call: ensureBucket,
	},
	{
		calls: "`DeleteBucket`", needs: publish("$JS.API.STREAM.DELETE.KV_<bucket>"), prepare: bucket,
		call: func(e *env) error { return e.app.DeleteBucket(testkit.Ctx(e), "B") },
	},
}

func ensureBucket(e *env) error {
	_, err := e.app.EnsureBucket(testkit.Ctx(e), jetstream.KeyValueConfig{Bucket: "B", History: 5})
	return err
}

var candidate = natty.AsLeaderConfig{Bucket: "B", Key: "k", NodeName: "app", BucketTTL: testkit.LeaseTTL}

// election makes the bucket of an election, which root has held before.
func election(e *env) {
	require.NoError(e, e.root.Lead(testkit.Ctx(e), candidate, func(context.Context, *natty.Term) error { return nil }))
}

// led is an election in which root leads until stop is called.
func led(e *env) (stop func() error) {
	leads := make(chan struct{})
	stop = testkit.Lead(e, e.root, candidate, func(ctx context.Context, _ *natty.Term) error {
		close(leads)
		<-ctx.Done()
		return nil
	})
	testkit.Receive(e, leads)
	return stop
}

func ledByRoot(e *env) { led(e) }

// succeeds leads once: behind root, who leads until app stands by, if all is to work.
func succeeds(e *env, cfg natty.AsLeaderConfig, f func(ctx context.Context, term *natty.Term) error) error {
	stop := func() error { return nil }
	if e.refused == "" {
		stop = led(e)
	}
	stopRoot := sync.OnceFunc(func() { go func() { _ = stop() }() })
	return e.run(func(ctx context.Context) error { return e.app.Lead(ctx, cfg, f) }, func() bool {
		if len(e.app.Health().Elections) > 0 && strings.Contains(e.reports(), e.noted) {
			stopRoot()
		}
		return false
	})
}

func nothing(context.Context, *natty.Term) error { return nil }

var (
	lease = publish("$JS.API.STREAM.INFO.KV_<bucket>", "$JS.API.STREAM.MSG.GET.KV_<bucket>", "$KV.<bucket>.<key>")
	lead  = join2(lease, publish("$KV.<bucket>.<key>._term"))
)

var leading = []row{
	{
		calls: "`Lead`, `AsLeader`", needs: and(lead, wait), prepare: election,
		call: func(e *env) error { return succeeds(e, candidate, nothing) },
	},
	{
		calls: "`Lead`, `AsLeader`", when: "makes the bucket",
		needs: and(join2(lead, publish("$JS.API.STREAM.CREATE.KV_<bucket>")), wait),
		call: func(e *env) error {
			return e.run(func(ctx context.Context) error { return e.app.Lead(ctx, candidate, nothing) }, func() bool { return false })
		},
	},
	{
		calls: "`Term.Put`", needs: and(join2(lead, publish("$KV.<bucket>.<other key>")), wait), prepare: election,
		call: func(e *env) error {
			return e.run(func(ctx context.Context) error {
				return e.app.Lead(ctx, candidate, func(ctx context.Context, term *natty.Term) error { return term.Put(ctx, "own", nil) })
			}, func() bool { return false })
		},
	},
	{
		calls: "`GetLeader`", needs: publish("$JS.API.STREAM.MSG.GET.KV_<bucket>"), prepare: ledByRoot,
		call: func(e *env) error {
			_, err := e.app.GetLeader(testkit.Ctx(e), "B", "k")
			return err
		},
	},
	{
		calls: "`HaveLeader`", needs: publish("$JS.API.STREAM.MSG.GET.KV_<bucket>"), prepare: ledByRoot,
		call: func(e *env) error {
			if !e.app.HaveLeader(testkit.Ctx(e), "app", "B", "k") {
				return fmt.Errorf("it says no: %s", e.reports())
			}
			return nil
		},
	},
	{
		calls: "`Lock`", needs: and(lease, wait), prepare: locked,
		call: func(e *env) error {
			return e.run(func(ctx context.Context) error {
				l, err := e.app.Lock(ctx, natty.LockConfig{Bucket: "B", Key: "k"})
				if err != nil {
					return err
				}
				return l.Release(testkit.Ctx(e))
			}, func() bool { return false })
		},
	},
	{
		calls: "`TryLock`", needs: lease, prepare: locked,
		call: func(e *env) error {
			l, err := e.app.TryLock(testkit.Ctx(e), natty.LockConfig{Bucket: "B", Key: "k"})
			if err != nil {
				return err
			}
			return l.Release(testkit.Ctx(e))
		},
	},
	{
		calls: "`Lock`, `TryLock`", when: "makes the bucket",
		needs: join2(lease, publish("$JS.API.STREAM.CREATE.KV_<bucket>")),
		call: func(e *env) error {
			l, err := e.app.TryLock(testkit.Ctx(e), natty.LockConfig{Bucket: "B", Key: "k"})
			if err != nil {
				return err
			}
			return l.Release(testkit.Ctx(e))
		},
	},
}

// locked makes the bucket of a lock, which root has held before.
func locked(e *env) {
	l, err := e.root.Lock(testkit.Ctx(e), natty.LockConfig{Bucket: "B", Key: "k"})
	require.NoError(e, err)
	require.NoError(e, l.Release(testkit.Ctx(e)))
}
