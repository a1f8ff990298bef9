package lease

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// As of a process that was paused after a Put without an answer, and knows nothing of
// its successor.
func TestFenceIsNotRenewedOverASuccessors(t *testing.T) {
	t.Parallel()
	k, ctx := testLease(t)
	begin := func(owner string, revision uint64) *Term {
		lease, err := k.Take(ctx, owner, revision)
		require.NoError(t, err)
		t.Cleanup(func() { lease.lose(errNotRenewed) })
		term, err := lease.BeginTerm()
		require.NoError(t, err)
		return term
	}
	former := begin("former", 0)
	former.strays = true
	owner := begin("owner", former.Lease.revision)
	require.NoError(t, owner.Put(ctx, "state", []byte("owner")))

	require.ErrorIs(t, former.Put(ctx, "state", []byte("former")), ErrDeposed)
	require.Error(t, former.Lease.Ctx.Err(), "its term is over")
	now, err := k.kv().KeyAtLeader(ctx, k.Bucket, owner.fence)
	require.NoError(t, err)
	require.Equal(t, owner.sequence, now.Seq, "the fence is the owner's")
	owner.strays = true
	require.NoError(t, owner.Put(ctx, "state", []byte("again")))
	require.Greater(t, owner.sequence, now.Seq)
}
