//go:build unix

package docscode

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

const guide = "docs/databases.md"

// TestTheProgramOfTheDatabaseGuideBillsEachOrderOnce runs it, and kills it.
func TestTheProgramOfTheDatabaseGuideBillsEachOrderOnce(t *testing.T) {
	t.Parallel()
	program, schema := databaseGuide(t)
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "bills.db")+"?_pragma=busy_timeout(5000)")
		require.NoError(t, err)
		t.Cleanup(func() { _ = db.Close() })
		billsEachOrderOnce(t, db, buildProgram(t, program, dir), 1)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		url := postgres(t)
		db, err := sql.Open("pgx", url)
		require.NoError(t, err)
		t.Cleanup(func() { _ = db.Close() })
		require.Eventually(t, func() bool { return db.PingContext(t.Context()) == nil }, time.Minute, 20*time.Millisecond)
		billsEachOrderOnce(t, db, buildProgram(t, forPostgres(t, program, schema, url), t.TempDir()), 2)
	})
}

// databaseGuide returns the program of the guide, and the schema that it gives for PostgreSQL.
func databaseGuide(t *testing.T) (program, schema string) {
	t.Helper()
	blocks, _ := split(guide, documents(t)[guide])
	for _, b := range blocks {
		if b.language == "go" && strings.HasPrefix(b.code, "package main") {
			program = b.code
		} else if b.language == "sql" {
			schema = b.code
		}
	}
	require.NotEmpty(t, program)
	require.NotEmpty(t, schema)
	return program, schema
}

// forPostgres changes in the program what the guide says, and nothing else.
func forPostgres(t *testing.T, program, schema, url string) string {
	t.Helper()
	swap := func(from, to, with string) {
		before, rest, found := strings.Cut(program, from)
		_, after, ended := strings.Cut(rest, to)
		require.True(t, found && ended, "the program has %s … %s", from, to)
		program = before + with + after
	}
	swap("const schema = `", "`", "const schema = `"+schema+"`")
	swap(`sql.Open("sqlite", `, ")\n", fmt.Sprintf("sql.Open(%q, %q)\n", "pgx", url))
	swap("\tdb.SetMaxOpenConns(1)", "\n", "")
	swap(`"modernc.org/sqlite"`, "\n", "\"github.com/jackc/pgx/v5/stdlib\"\n")
	return program
}

// buildProgram builds it as a package of this module, which has what it imports, and returns how to
// start an instance of it in dir.
func buildProgram(t *testing.T, program, dir string) (start func(server string) *exec.Cmd) {
	t.Helper()
	build := t.TempDir()
	source, overlay, binary := filepath.Join(build, "main.go"), filepath.Join(build, "overlay"), filepath.Join(build, "billing")
	require.NoError(t, os.WriteFile(source, []byte(program), 0o600))
	pkg, err := filepath.Abs("databases")
	require.NoError(t, err)
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(pkg, "main.go"): source}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(overlay, replace, 0o600))
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "-overlay", overlay, "./databases").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return func(server string) *exec.Cmd {
		cmd := exec.Command(binary)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "NATS_URL="+server)
		cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { // if the test has failed
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd
	}
}

// billsEachOrderOnce kills one of some instances at work, starts another, and at the end delivers
// everything once more.
func billsEachOrderOnce(t *testing.T, db *sql.DB, start func(server string) *exec.Cmd, instances int) {
	t.Helper()
	const orders = 60
	server := nattytest.Server(t)
	c, err := natty.Connect(t.Context(), natty.Config{Servers: []string{server.URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	var running []*exec.Cmd
	for range instances {
		running = append(running, start(server.URL()))
	}
	isBilled := func() int {
		var n int
		_ = db.QueryRowContext(t.Context(), `SELECT count(*) FROM bills`).Scan(&n) // fails until there is the table
		return n
	}
	published := func() int {
		stream, err := c.JetStream().Stream(t.Context(), "BILLS")
		if err != nil {
			return 0
		}
		return int(stream.CachedInfo().State.Msgs)
	}

	eventually(t, func() bool { _, err := c.JetStream().Consumer(t.Context(), "ORDERS", "billing"); return err == nil })
	go func() {
		for i := range orders {
			_ = c.Publish(t.Context(), "orders.new", fmt.Appendf(nil, "order %d", i))
		}
	}()
	eventually(t, func() bool { return isBilled() > 5 })
	require.NoError(t, running[0].Process.Kill())
	_ = running[0].Wait()
	running[0] = start(server.URL())
	eventually(t, func() bool { return isBilled() >= orders && published() >= orders })
	stopAll(t, running)

	require.NoError(t, c.JetStream().DeleteConsumer(t.Context(), "ORDERS", "billing"))
	again := start(server.URL())
	eventually(t, func() bool {
		durable, err := c.JetStream().Consumer(t.Context(), "ORDERS", "billing")
		return err == nil && durable.CachedInfo().AckFloor.Stream == orders
	})
	stopAll(t, []*exec.Cmd{again})
	assert.Equal(t, orders, isBilled())
	assert.Equal(t, orders, published())
	var different, left int
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT count(DISTINCT content) FROM bills`).Scan(&different))
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT count(*) FROM outbox`).Scan(&left))
	assert.Equal(t, orders, different)
	assert.Zero(t, left)
}

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	require.Eventually(t, is, time.Minute, 20*time.Millisecond)
}

// stopAll stops the program as an operator does.
func stopAll(t *testing.T, running []*exec.Cmd) {
	t.Helper()
	for _, cmd := range running {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, cmd.Wait())
	}
}

// postgres starts a PostgreSQL server of the machine's for the test, and returns how to reach it.
func postgres(t *testing.T) (url string) {
	t.Helper()
	initdb, err := exec.LookPath("initdb")
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); err != nil && len(found) > 0 {
		initdb, err = found[len(found)-1], nil
	}
	if err != nil {
		t.Skip("needs PostgreSQL: there is no initdb in PATH or /usr/lib/postgresql/*/bin")
	}
	if initdb, err = filepath.EvalSymlinks(initdb); err != nil {
		t.Fatal(err)
	}
	// The path of a socket has at most 107 bytes, and another user must be able to get there.
	dir, err := os.MkdirTemp("", "postgres") //nolint:usetesting // t.TempDir is too long, and for this user only
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	attr := unprivileged(t, dir)
	data := filepath.Join(dir, "data")
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(filepath.Dir(initdb), name), args...)
		cmd.Dir, cmd.SysProcAttr = dir, attr
		return cmd
	}
	out, err := run("initdb", "-D", data, "-U", "natty", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync").CombinedOutput()
	require.NoError(t, err, "%s", out)
	server := run("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off")
	server.Stdout, server.Stderr = t.Output(), t.Output()
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGINT) // PostgreSQL's fast shutdown
		_ = server.Wait()
	})
	return "host=" + dir + " user=natty dbname=postgres"
}

// unprivileged is how to run PostgreSQL, which refuses to run as root. It owns dir then.
func unprivileged(t *testing.T, dir string) *syscall.SysProcAttr {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	who, err := user.Lookup("postgres")
	if err != nil {
		who, err = user.Lookup("nobody")
	}
	require.NoError(t, err)
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	require.NoError(t, err)
	require.NoError(t, os.Chown(dir, int(uid), int(gid)))
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}
