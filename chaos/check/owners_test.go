package check

import "testing"

func TestKeyOrder(t *testing.T) {
	t.Parallel()
	stored := "0 stream stored id=a on=w.order.a.k0 seq=1\n0 stream stored id=b on=w.order.a.k0 seq=2\n"
	run := func(lines string) string { return stored + lines }
	const on = " on=w.order.a.k0 "
	tell(t, KeyOrder,
		tale{"in order", run("1 order-1#1 begun seq=1" + on + "\n2 order-1#1 done seq=1" + on + "\n3 order-1#1 begun seq=2" + on), 0},
		tale{"overtaken", run("1 order-1#1 begun seq=2" + on + "\n2 order-1#1 done seq=2" + on + "\n3 order-1#1 begun seq=1" + on), 1},
		tale{"behind one that failed", run("1 order-1#1 begun seq=1" + on + "\n2 order-1#1 failed seq=1" + on + "\n3 order-1#1 begun seq=2" + on), 1},
		tale{"at the same time", run("1 order-1#1 begun seq=1" + on + "\n2 order-1#1 begun seq=2" + on), 1},
		tale{"another key", run("1 order-1#1 begun seq=2 on=w.order.a.k1\n2 order-1#1 begun seq=1" + on), 0},
		tale{"held by a killed process", run("0.5 nemesis fault op=kill key=order-1 from=0.4\n1 order-1#2 begun seq=2" + on +
			"\n2 order-1#2 done seq=2" + on + "\n3 order-1#2 begun seq=1" + on), 0},
		tale{"again after it was accepted", run("1 order-1#1 begun seq=1" + on + "\n2 order-1#1 done seq=1" + on +
			"\n3 order-1#1 begun seq=2" + on + "\n4 order-1#1 done seq=2" + on + "\n5 order-1#1 begun seq=1" + on), 0},
	)
}

func TestExclusiveOrder(t *testing.T) {
	t.Parallel()
	const stored = "0 stream stored on=w.excl.a.k0 seq=7\n0 stream stored on=w.excl.a.k0 seq=3\n"
	const on = " on=w.excl.a.k0\n"
	tell(t, ExclusiveOrder,
		tale{"in order", stored + "1 excl-1#1 begun seq=3" + on + "2 excl-1#1 done seq=3" + on + "3 excl-2#1 begun seq=7" + on, 0},
		tale{"skipped", stored + "3 excl-2#1 begun seq=7" + on, 1},
		tale{"before the other has ended", stored + "1 excl-1#1 begun seq=3" + on + "2 excl-2#1 begun seq=7" + on + "3 excl-1#1 done seq=3" + on, 1},
	)
}

func TestLeaders(t *testing.T) {
	t.Parallel()
	tell(t, Leaders,
		tale{"one after the other", "1 lead-1#1 own op=lead seq=1\n2 lead-1#1 disow op=lead seq=1\n3 lead-2#1 own op=lead seq=2\n4 lead-2#1 sample", 0},
		tale{"two at once", "1 lead-1#1 own op=lead seq=1\n2 lead-2#1 own op=lead seq=2\n3 lead-1#1 disow op=lead seq=1\n4 lead-2#1 sample", 1},
		tale{"killed", "1 lead-1#1 own op=lead seq=1\n1.5 lead-1#1 sample\n2 lead-2#1 own op=lead seq=2\n3 lead-1#2 started\n4 lead-2#1 sample", 0},
		tale{"paused", "1 lead-1#1 own op=lead seq=1\n9 nemesis fault op=pause key=lead-1 from=2\n6 lead-2#1 own op=lead seq=2\n" +
			"9.2 lead-1#1 disow op=lead seq=1\n10 lead-2#1 sample", 0},
		tale{"paused and never told", "1 lead-1#1 own op=lead seq=1\n9 nemesis fault op=pause key=lead-1 from=2\n6 lead-2#1 own op=lead seq=2\n" +
			"12 lead-1#1 disow op=lead seq=1\n13 lead-2#1 sample", 1},
		tale{"a token that does not grow", "1 lead-1#1 own op=lead seq=5\n2 lead-1#1 disow op=lead seq=5\n3 lead-2#1 own op=lead seq=5\n4 lead-2#1 disow op=lead seq=5", 1},
	)
}

func TestExclusiveOwners(t *testing.T) {
	t.Parallel()
	const on = " on=w.excl.a.k0\n"
	tell(t, ExclusiveOwners,
		tale{"one after the other", "1 excl-1#1 begun seq=1" + on + "2 excl-1#1 done seq=1" + on + "3 excl-2#1 begun seq=2" + on + "4 excl-2#1 done seq=2" + on, 0},
		tale{"two at once", "1 excl-1#1 begun seq=1" + on + "2 excl-2#1 begun seq=1" + on + "3 excl-1#1 done seq=1" + on + "4 excl-2#1 done seq=1" + on, 1},
		tale{"its ctx had ended", "1 excl-1#1 begun seq=1" + on + "1.5 excl-1#1 distrust seq=1" + on + "2 excl-2#1 begun seq=1" + on +
			"3 excl-1#1 done seq=1" + on + "4 excl-2#1 done seq=1" + on, 0},
	)
}

func TestFences(t *testing.T) {
	t.Parallel()
	tell(t, Fences,
		tale{"refused", "2 lead-2#1 return op=lead from=1 seq=2 text=ok\n4 lead-1#1 return op=lead from=3 seq=1 text=deposed", 0},
		tale{"a late write", "2 lead-2#1 return op=lead from=1 seq=2 text=ok\n4 lead-1#1 return op=lead from=3 seq=1 text=ok", 1},
		tale{"at the same time", "2 lead-2#1 return op=lead from=1 seq=2 text=ok\n3 lead-1#1 return op=lead from=1.5 seq=1 text=ok", 0},
	)
}

func TestLocks(t *testing.T) {
	t.Parallel()
	tell(t, Locks,
		tale{"none", "1 lock-1#1 sample", 0},
		tale{"one after the other", "1 lock-1#1 own op=lock seq=1\n2 lock-1#1 disow op=lock seq=1\n3 lock-2#1 own op=lock seq=2\n4 lock-2#1 disow op=lock seq=2", 0},
		tale{"two at once", "1 lock-1#1 own op=lock seq=1\n2 lock-2#1 own op=lock seq=2\n3 lock-1#1 disow op=lock seq=1\n4 lock-2#1 disow op=lock seq=2", 1},
		tale{"an old token", "1 lock-1#1 own op=lock seq=4\n2 lock-1#1 disow op=lock seq=4\n3 lock-2#1 own op=lock seq=2\n4 lock-2#1 disow op=lock seq=2", 1},
	)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	call := func(at, op, rest string) string {
		return at + " kv-1#1 return key=k op=" + op + " id=" + at + " from=" + at + " " + rest + "\n"
	}
	tell(t, Keys,
		tale{"read what was put", call("1", "put", "n=5 text=ok-once") + call("2", "read", "n=5 text=ok"), 0},
		tale{"read what was overwritten", call("1", "put", "n=5 text=ok-once") + call("2", "put", "n=6 text=ok-once") + call("3", "read", "n=5 text=ok"), 1},
		tale{"in doubt, and seen later", call("1", "put", "n=5 text=indoubt") + call("2", "read", "n=0 text=ok") + call("3", "read", "n=5 text=ok"), 0},
		tale{"not done, and seen", call("1", "put", "n=5 text=notdone") + call("2", "read", "n=5 text=ok"), 1},
		tale{"created twice", call("1", "create", "n=5 text=ok-once") + call("2", "create", "n=6 text=ok-once"), 1},
		tale{"created where it exists", call("1", "create", "n=5 text=ok-once") + call("2", "create", "n=6 text=exists"), 0},
		tale{"updated at an old revision", call("1", "create", "n=5 text=ok-once") + call("2", "update", "n=6 want=0 seq=9 text=stale") +
			call("3", "update", "n=6 want=9 seq=10 text=ok") + call("4", "update", "n=7 want=9 seq=11 text=ok"), 1},
		tale{"the call of a killed process", "1 kv-1#1 call key=k op=put id=x n=5\n" + call("2", "read", "n=5 text=ok"), 0},
		tale{"put again after a restart", "1.5 nemesis fault op=kill-server key=server-1 from=1\n" +
			"2 kv-1#1 return key=k op=put id=a from=0.5 n=5 text=ok\n" + call("3", "put", "n=6 text=ok-once") + call("4", "read", "n=5 text=ok"), 0},
	)
}
