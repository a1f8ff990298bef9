//go:build natty_mutant

package mutant

import "os"

var name = os.Getenv("NATTY_MUTANT")

// See off.go.
var (
	AckFirst        = name == "ack-first"
	BlindRenewal    = name == "blind-renewal"
	BlindWrites     = name == "blind-writes"
	DropsLetters    = name == "drops-letters"
	Early           = name == "early"
	HalfBatch       = name == "half-batch"
	HidesRemovals   = name == "hides-removals"
	Hurries         = name == "hurries"
	Leaks           = name == "leaks"
	LetsPanic       = name == "lets-panic"
	NoFence         = name == "no-fence"
	NoMessageID     = name == "no-message-id"
	NoOrder         = name == "no-order"
	NoReset         = name == "no-reset"
	NotExclusive    = name == "not-exclusive"
	ReplacesFilters = name == "replaces-filters"
	Stalls          = name == "stalls"
	StaleCopies     = name == "stale-copies"
	TellsAgain      = name == "tells-again"
)
