package natty

import (
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// feature is something that not every server has.
type feature struct {
	name         string // in the plural
	major, minor int    // the first version that has it
}

var (
	exclusiveConsumers = feature{"exclusive consumers", 2, 14}
	consumerResets     = feature{"resets of consumers", 2, 14}
	atomicBatches      = feature{"atomic batches (AllowAtomicPublish)", 2, 12}
	schedules          = feature{"schedules (AllowMsgSchedules)", 2, 12}
	repeatingSchedules = feature{"schedules with Every or Cron", 2, 14}
	ownTTLs            = feature{"own TTLs of messages and keys (AllowMsgTTL)", 2, 11}
	markers            = feature{"markers of expired keys (LimitMarkerTTL)", 2, 11}

	// streamFeatures are settings of a stream that not every server knows, by their JSON names. Before 2.12 a server ignores
	// what it does not know, and later ones refuse it without a name for that.
	streamFeatures = map[string]feature{
		"allow_msg_ttl":             ownTTLs,
		"subject_delete_marker_ttl": markers,
		"allow_msg_schedules":       schedules,
		"allow_atomic":              atomicBatches,
		"allow_msg_counter":         {"counters (AllowMsgCounter)", 2, 12},
		"persist_mode":              {"persist modes (PersistMode)", 2, 12},
		"allow_batched":             {"fast batches (AllowBatchPublish)", 2, 14},
	}
)

// missingFrom returns ErrUnsupported, with what is missing and since when there is that, for a server of a version that does
// not have the feature.
func (f feature) missingFrom(version string) error {
	if !olderThan(version, f.major, f.minor) {
		return nil
	}
	return fmt.Errorf("%w: %s need nats-server %d.%d or newer, and it is %s", ErrUnsupported, f.name, f.major, f.minor, version)
}

// metaServerVersion is where a server of 2.11 or newer writes its version, when it describes a stream.
const metaServerVersion = "_nats.ver"

// serverVersion is the version of the server that has described a stream. That which natty is connected to may be another one: a
// leaf node, or one of a cluster that is being upgraded.
func (c *Client) serverVersion(streamMetadata map[string]string) string {
	return describedBy(streamMetadata, c.nc.ConnectedServerVersion())
}

func describedBy(streamMetadata map[string]string, connected string) string {
	if v := streamMetadata[metaServerVersion]; v != "" {
		return v
	}
	if olderThan(connected, 2, 11) {
		return connected
	}
	return "2.10 or older"
}

// olderThan compares versions of the server; one that cannot be read is not older.
func olderThan(version string, major, minor int) bool {
	var have [2]int
	if n, _ := fmt.Sscanf(version, "%d.%d", &have[0], &have[1]); n < len(have) {
		return false
	}
	return have[0] < major || have[0] == major && have[1] < minor
}

// tooOldFor returns ErrUnsupported if a server of a version does not know one of the settings of a stream that it was asked for,
// and that the stream does not have.
func tooOldFor(version string, missing []Difference) error {
	for _, d := range missing {
		if f, ok := streamFeatures[d.Field]; ok {
			if err := f.missingFrom(version); err != nil {
				return err
			}
		}
	}
	return nil
}

// newStreamLacks returns ErrUnsupported if a stream that was made, or refused for settings that are not known, lacks what want
// asks for since the server is too old.
func (c *Client) newStreamLacks(want map[string]any, made jetstream.Stream, refused error) error {
	have, version := map[string]any{}, c.nc.ConnectedServerVersion()
	switch {
	case errorCode(refused) == codeInvalidJSON:
	case refused != nil:
		return refused
	default:
		config := made.CachedInfo().Config
		version = c.serverVersion(config.Metadata)
		var err error
		if have, err = settings(config); err != nil {
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
