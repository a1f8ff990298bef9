package natty

// Observer is told what happens to a Client, see WithObserver. It is the seam for metrics and traces; for a health endpoint there is
// Health.
//
// Observe is called from one goroutine, an event after the other, in the order in which they happened. It holds up nothing: while it
// blocks 256 events wait for it, and those beyond are dropped, logged and counted in Health. A panic is logged. Close
// waits a second at most for what is queued.
type Observer interface {
	Observe(e Event)
}

// ObserverFunc is a function that is an Observer.
type ObserverFunc func(Event)

// Observe calls f.
func (f ObserverFunc) Observe(e Event) { f(e) }

// Event is one of ConnectionEvent, ConsumerEvent, ElectionEvent and LockEvent, none of which holds a secret. Later versions may
// have more of them, and more fields: switch over their types with a default.
type Event interface{ event() }

// ConnectionEvent says that the connection was made or lost, or what is wrong with it.
type ConnectionEvent struct {
	// Connected says whether there is a connection now.
	Connected bool
	// Server is the URL last connected to, without credentials.
	Server string
	// Err is what went wrong: why there is no connection, or what the connection reports. nil: Connected has changed.
	Err error
}

// ConsumerEvent says that a consumer has another state, or what went wrong with it.
type ConsumerEvent struct {
	Stream, Durable string
	// State is what the consumer is doing now. It begins with ConsumerStarting and ends with ConsumerStopped. A connection that
	// is lost and made again at once may be told of by ConnectionEvents alone.
	State ConsumerState
	// Err is what OnError is told; with ConsumerStopped, what Process returns. nil: State has changed, and nothing is wrong.
	Err error
}

// ElectionEvent says that a call of Lead or AsLeader leads, or does not any more, or what keeps it from leading.
type ElectionEvent struct {
	Bucket, Key, NodeName string
	// Leading says whether it leads now. Token is the term's; 0 while it stands by.
	Leading bool
	Token   uint64
	// Err is nil when it is elected, and when it has given the leadership back. It matches ErrDeposed when the leadership was
	// lost. Anything else went wrong on the way: with Leading, the lease could not be renewed, and the term goes on for now;
	// without a Token, why it cannot be elected; and else why the server may not know that the term is over.
	Err error
}

// LockEvent says that a lock was lost, of which its Lease's Context tells too.
type LockEvent struct {
	Bucket, Key, Owner string
	Token              uint64
	Err                error // matches ErrDeposed
}

func (ConnectionEvent) event() {}
func (ConsumerEvent) event()   {}
func (ElectionEvent) event()   {}
func (LockEvent) event()       {}
