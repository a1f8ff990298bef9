package jsapi

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOldServersAreRecognised(t *testing.T) {
	t.Parallel()
	for version, old := range map[string]bool{
		"2.13.9": true, "1.99.0": true, "2.14.0": false, "2.15.2": false, "3.0.0": false, "2.14.0-RC.1": false, "": false, "main": false,
	} {
		assert.Equal(t, old, olderThan(version, 2, 14), version)
	}
}

func TestVersionIsThatOfTheServerThatHasTheStream(t *testing.T) {
	t.Parallel()
	has := map[string]string{MetaServerVersion: "2.12.1", "mine": "x"}
	assert.Equal(t, "2.12.1", describedBy(has, "2.15.2"), "not of the one that natty is connected to")
	assert.Equal(t, "2.12.1", describedBy(has, "2.10.27"))
	assert.Equal(t, "2.10.27", describedBy(nil, "2.10.27"))
	assert.Equal(t, "2.10 or older", describedBy(nil, "2.15.2"), "since 2.11 they say it")
	assert.True(t, olderThan("2.10 or older", 2, 11))
}

// Asked for such settings, 2.10.27 and 2.11.17 made the stream without those that they
// do not know, and said nothing. 2.12.15 refused allow_batched as invalid JSON: what it
// lacks is told from what it would have.
func TestSettingsThatAServerIgnoredAreNamed(t *testing.T) {
	t.Parallel()
	want, err := Settings(jetstream.StreamConfig{AllowMsgTTL: true, SubjectDeleteMarkerTTL: 1e9, AllowMsgSchedules: true, AllowAtomicPublish: true, AllowBatchPublish: true, MaxMsgs: 5})
	require.NoError(t, err)
	ttls := jetstream.StreamConfig{AllowMsgTTL: true, SubjectDeleteMarkerTTL: 1e9}
	most := ttls
	most.AllowMsgSchedules, most.AllowAtomicPublish = true, true
	for version, test := range map[string]struct {
		has  jetstream.StreamConfig
		want string
	}{
		"2.10.27": {jetstream.StreamConfig{}, "AllowAtomicPublish) need nats-server 2.12 or newer, and it is 2.10.27"},
		"2.11.17": {ttls, "AllowAtomicPublish) need nats-server 2.12 or newer, and it is 2.11.17"},
		"2.12.15": {most, "AllowBatchPublish) need nats-server 2.14 or newer, and it is 2.12.15"},
		"2.15.2":  {jetstream.StreamConfig{}, ""}, // somebody else changed it meanwhile
	} {
		have, err := Settings(test.has)
		require.NoError(t, err)
		switch err := tooOldFor(version, differences(have, want)); test.want {
		case "":
			require.NoError(t, err, version)
		default:
			require.ErrorIs(t, err, ErrUnsupported, version)
			require.ErrorContains(t, err, test.want, version)
		}
	}
	have, err := Settings(jetstream.StreamConfig{})
	require.NoError(t, err)
	require.NoError(t, tooOldFor("2.10.27", differences(have, map[string]any{"max_msgs": want["max_msgs"]})), "as old as it is")
}
