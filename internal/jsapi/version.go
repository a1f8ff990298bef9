package jsapi

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Feature is something that not every server has.
type Feature struct {
	name         string // in the plural
	major, minor int    // the first version that has it
}

// The features that natty uses, and the first servers that have them.
var (
	ExclusiveConsumers = Feature{"exclusive consumers", 2, 14}
	ConsumerResets     = Feature{"resets of consumers", 2, 14}
	AtomicBatches      = Feature{"atomic batches (AllowAtomicPublish)", 2, 12}
	Schedules          = Feature{"schedules (AllowMsgSchedules)", 2, 12}
	RepeatingSchedules = Feature{"schedules with Every or Cron", 2, 14}
	ownTTLs            = Feature{"own TTLs of messages and keys (AllowMsgTTL)", 2, 11}
	Markers            = Feature{"markers of expired keys (LimitMarkerTTL)", 2, 11}

	// streamFeatures are the settings of a stream that not every server knows, by JSON
	// name. A server before 2.12 ignores settings that it does not know. Later ones
	// refuse them, without naming them.
	streamFeatures = map[string]Feature{
		"allow_msg_ttl":             ownTTLs,
		"subject_delete_marker_ttl": Markers,
		"allow_msg_schedules":       Schedules,
		"allow_atomic":              AtomicBatches,
		"allow_msg_counter":         {"counters (AllowMsgCounter)", 2, 12},
		"persist_mode":              {"persist modes (PersistMode)", 2, 12},
		"allow_batched":             {"fast batches (AllowBatchPublish)", 2, 14},
	}
)

// ErrUnsupported says that the server is too old for what was asked of it.
var ErrUnsupported = errors.New("not supported by the server")

// MissingFrom returns nil if a server of a version has the feature. If not, the error
// wraps ErrUnsupported, and says what is missing and which servers have it.
func (f Feature) MissingFrom(version string) error {
	if !olderThan(version, f.major, f.minor) {
		return nil
	}
	return fmt.Errorf("%w: %s need nats-server %d.%d or newer, and it is %s",
		ErrUnsupported, f.name, f.major, f.minor, version)
}

// MetaServerVersion is the key in a stream's metadata under which a server of 2.11 or
// newer returns its own version.
const MetaServerVersion = "_nats.ver"

// ServerVersion returns the version of the server that described a stream. natty may be
// connected to a server of another version: a leaf node, or a cluster in an upgrade.
func (a *Client) ServerVersion(streamMetadata map[string]string) string {
	return describedBy(streamMetadata, a.NC.ConnectedServerVersion())
}

func describedBy(streamMetadata map[string]string, connected string) string {
	if v := streamMetadata[MetaServerVersion]; v != "" {
		return v
	}
	if olderThan(connected, 2, 11) {
		return connected
	}
	return "2.10 or older"
}

// olderThan reports whether version is before major.minor. A version that cannot be
// read is not.
func olderThan(version string, major, minor int) bool {
	var have [2]int
	if n, _ := fmt.Sscanf(version, "%d.%d", &have[0], &have[1]); n < len(have) {
		return false
	}
	return have[0] < major || have[0] == major && have[1] < minor
}

// tooOldFor returns ErrUnsupported if a server of a version does not know one of the
// settings that a stream lacks.
func tooOldFor(version string, missing []Difference) error {
	for _, d := range missing {
		if f, ok := streamFeatures[d.Field]; ok {
			if err := f.MissingFrom(version); err != nil {
				return err
			}
		}
	}
	return nil
}

// NewStreamLacks returns ErrUnsupported if the server is too old for a setting of want,
// and has therefore made the stream without it or refused to make it. Else it returns
// refused.
func (a *Client) NewStreamLacks(want map[string]any, made *jetstream.StreamConfig, refused error) error {
	have, version := map[string]any{}, a.NC.ConnectedServerVersion()
	switch {
	case Code(refused) == codeInvalidJSON:
	case refused != nil:
		return refused
	default:
		version = a.ServerVersion(made.Metadata)
		var err error
		if have, err = Settings(*made); err != nil {
			return err
		}
	}
	if err := tooOldFor(version, differences(have, want)); err != nil {
		if refused != nil {
			return fmt.Errorf("%w: %w", err, refused)
		}
		return err
	}
	return refused
}
