//go:build unix

package setup

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnInterruptEndsTheReadingOfASilentPipe(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(name, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := Open(ctx, name) // nobody writes
	require.ErrorIs(t, err, context.Canceled)

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	writer, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	defer writer.Close()
	f, err := Open(ctx, name)
	require.NoError(t, err)
	defer f.Close()
	_, err = writer.WriteString("first\n")
	require.NoError(t, err)
	first := make([]byte, 6)
	_, err = io.ReadFull(f, first)
	require.NoError(t, err)
	require.Equal(t, "first\n", string(first))
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err = f.Read(first)
	require.ErrorIs(t, err, context.Canceled)
}

func TestAFileIsReadToItsEnd(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, []byte("all of it"), 0o600))
	f, err := Open(t.Context(), name)
	require.NoError(t, err)
	data, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, "all of it", string(data))
	require.NoError(t, f.Close())
	_, err = Open(t.Context(), name+"s")
	require.ErrorIs(t, err, os.ErrNotExist)
}
