package pull

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// AtOnce is the time within which a request ends at once. A caller that answers such an
// end with the next request asks as fast as it can.
const AtOnce = 250 * time.Millisecond

// End is how a request ended. The zero value means that it brought all that it asked
// for.
type End struct {
	Status      string
	Description string
	Brought     bool          // it had brought a message
	After       time.Duration // how long it lasted
	// Refusal is why the request, or its answers, cannot get through.
	Refusal error
	touch   bool // see Puller.Touch
}

// noStatus is the Status of an answer that has none. The server's all have one.
const noStatus = "(no status)"

// endOf reads the end of a request from the header of an answer.
func endOf(status, description string) End {
	if status == "" {
		return End{Status: noStatus, Description: "somebody answered who is not JetStream; " +
			"look for a responder on the subject of pull requests"}
	}
	return End{Status: status, Description: description}
}

// Err returns e as an error.
func (e End) Err() error {
	if e.Refusal != nil {
		return e.Refusal
	}
	return fmt.Errorf("pull request ended: %s", strings.TrimSpace(e.Status+" "+e.Description))
}

// Expected reports an end that belongs to normal work: there were no messages in time,
// or the next message is for another request. A message that is too large for a request
// that brought none before it is too large for the next one as well.
func (e End) Expected() bool {
	if e.Refusal != nil {
		return false
	}
	switch e.Status {
	case "", "404", "408":
		return true
	}
	return e.TooSmall() && (e.Brought || e.touch) || e.Is("batch completed")
}

// TooSmall reports that the next message has more bytes than the request allowed.
func (e End) TooSmall() bool { return e.Is("message size exceeds maxbytes") }

// Fruitless reports an end that is expected, but came at once and without a message.
// The next request would most likely end in the same way.
func (e End) Fruitless() bool {
	return e.Status != "" && !e.Brought && !e.touch && e.After < AtOnce
}

// Is reports whether the description begins with description, in lower case. What a 409
// means stands in its description only.
func (e End) Is(description string) bool {
	return strings.HasPrefix(strings.ToLower(e.Description), description)
}

// Away reports that the server, or the leader of the durable, was not there at the
// moment: the durable moved, or nobody answered.
func (e End) Away() bool {
	return e.Is("leadership change") || e.Is("server shutdown") || cmp.Or(e.Status, "-") == "503"
}
