package faulttest_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// reigns counts who leads, whatever the program.
type reigns struct {
	t      testing.TB
	active atomic.Int32

	mu    sync.Mutex // guards what follows
	terms []string
	began []time.Time
	ended []time.Time
}

func (r *reigns) begin(who string) {
	assert.EqualValues(r.t, 1, r.active.Add(1), "one leader at a time")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.terms, r.began = append(r.terms, who), append(r.began, time.Now())
}

func (r *reigns) end() {
	r.mu.Lock()
	r.ended = append(r.ended, time.Now())
	r.mu.Unlock()
	r.active.Add(-1)
}

// was returns who has led so far.
func (r *reigns) was() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.terms...)
}

// gap returns for how long nobody led before the last term.
func (r *reigns) gap() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.began[len(r.terms)-1].Sub(r.ended[len(r.terms)-2])
}

// otherElection leads as programs do that know nothing of natty: it creates the key, writes it again while it leads, and leaves it
// behind when it stops. It uses the client of the time when there were no markers.
func otherElection(t testing.TB, url string, r *reigns, conditional bool) (stop func() error) {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := nc.JetStream() //nolint:forbidigo // as such programs do
	require.NoError(t, err)
	config := &nats.KeyValueConfig{Bucket: "elections", TTL: testkit.LeaseTTL} //nolint:forbidigo // as such programs do
	kv, err := js.CreateKeyValue(config)
	require.NoError(t, err)
	return testkit.Background(t, "the other election", func(ctx context.Context) error {
		every := time.NewTicker(testkit.LeaseTTL / 5)
		defer every.Stop()
		for revision := uint64(0); ; {
			var err error
			switch leads := revision > 0; {
			case leads && conditional:
				revision, err = kv.Update("job", []byte("other"), revision)
			case leads:
				revision, err = kv.Put("job", []byte("other"))
			default:
				revision, err = kv.Create("job", []byte("other"))
				if errors.Is(err, nats.ErrKeyExists) {
					revision, err = 0, nil
				}
				if revision > 0 {
					r.begin("other")
					defer r.end()
				}
			}
			if err != nil {
				return err
			}
			select {
			case <-every.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// A service changes from another program's election to natty's and back, an instance at a time.
func TestElectionOfAnotherProgramIsTakenOverWithoutASecondLeader(t *testing.T) {
	t.Parallel()
	for name, conditional := range map[string]bool{"that puts": false, "that updates": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := nattytest.Server(t).URL()
			r := &reigns{t: t}
			lead := func() (stop func() error) {
				return testkit.Lead(t, testkit.ConnectTo(t, url), testkit.Electing("natty"), func(ctx context.Context, _ *natty.Term) error {
					r.begin("natty")
					defer r.end()
					<-ctx.Done()
					return nil
				})
			}
			leads := func(terms ...string) {
				t.Helper()
				testkit.Eventually(t, func() bool { return len(r.was()) >= len(terms) }, "the next one leads")
				require.Equal(t, terms, r.was())
			}
			stopOther := otherElection(t, url, r, conditional)
			leads("other")
			stopOthers := otherElection(t, url, r, conditional)
			stopNatty := lead()
			require.NoError(t, stopOthers())
			stopNatty2 := lead()
			<-time.After(2 * testkit.LeaseTTL)
			leads("other") // it is renewed all the time
			require.NoError(t, stopOther())
			leads("other", "natty")
			assert.Less(t, r.gap(), testkit.LeaseTTL+testkit.AtOnce, "the key has expired")

			// One of the other program comes back, and waits.
			stopOther = otherElection(t, url, r, conditional)
			<-time.After(2 * testkit.LeaseTTL)
			leads("other", "natty")
			require.NoError(t, stopNatty())
			require.NoError(t, stopNatty2())
			testkit.Eventually(t, func() bool { w := r.was(); return w[len(w)-1] == "other" }, "it follows when natty stops")
			assert.Less(t, r.gap(), testkit.LeaseTTL/2, "natty has released the key")
			require.NoError(t, stopOther())
		})
	}
}
