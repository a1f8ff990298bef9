//go:build !natty_mutant

// Package mutant lets the command chaos break natty's promises on purpose, one at a
// time, to prove that its checkers notice. In every build without the tag natty_mutant
// its constants are false, and the compiler removes what they guard.
package mutant

// Each constant breaks one promise.
const (
	AckFirst        = false // a message is acknowledged before its handler runs
	BlindRenewal    = false // a lease counts as renewed before the server has answered
	BlindWrites     = false // a write of a key depends on no revision
	DropsLetters    = false // a message that failed for good has no dead letter
	Early           = false // a schedule is due three seconds too soon
	HalfBatch       = false // a batch is committed without its second half
	HidesRemovals   = false // nobody is told that messages were removed
	Hurries         = false // a publish waits for no answer, and is sent again without a pause
	Leaks           = false // a publish leaves a goroutine behind
	LetsPanic       = false // the panic of a handler ends the process
	NoFence         = false // Term.Put does not depend on the fence
	NoMessageID     = false // Publish sends no message id
	NoOrder         = false // OrderBy orders nothing
	NoReset         = false // a new active instance goes on where the deliveries are
	NotExclusive    = false // all instances of an Exclusive consumer are active
	ReplacesFilters = false // an instance takes filters off that it did not ask for
	Stalls          = false // a consumer's goroutines end after a message, and nobody is told
	StaleCopies     = false // a copy keeps the keys of a bucket that was made anew
	TellsAgain      = false // trouble is reported as often as it is noticed
)
