package jsapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/respmux"
)

// Error codes of the server that decide something by themselves. nats.go's names stand
// where it has one. natty never reads the text of an error: it changes between
// versions.
const (
	CodeAccountLimit         jetstream.ErrorCode = 10002
	CodeNoPeers              jetstream.ErrorCode = 10005
	CodeNotAvailable         jetstream.ErrorCode = 10008
	CodeNotLeader            jetstream.ErrorCode = 10009
	codeConsumerFailed       jetstream.ErrorCode = 10012 // to make or to change one
	CodeNoResources          jetstream.ErrorCode = 10023
	CodeMaxConsumers         jetstream.ErrorCode = 10026 // of the stream, or of the account
	codeInvalidJSON          jetstream.ErrorCode = 10025 // also for a setting it does not know
	CodeNoMemory             jetstream.ErrorCode = 10028
	CodeNoStorage            jetstream.ErrorCode = 10047
	CodeMsgTooLarge                              = jetstream.JSErrCodeStreamMessageExceedsMaximum
	CodeNoMessage            jetstream.ErrorCode = 10057
	CodeSequenceMismatch     jetstream.ErrorCode = 10063
	codeSubjectsOverlap      jetstream.ErrorCode = 10065 // another stream has them
	CodeWrongLastID          jetstream.ErrorCode = 10070
	CodeWrongLastSeq                             = jetstream.JSErrCodeStreamWrongLastSequence
	CodeNoReplicas           jetstream.ErrorCode = 10074
	CodeStoreFailed          jetstream.ErrorCode = 10077
	CodeHeaderTooLarge       jetstream.ErrorCode = 10097
	CodeQueueHasConsumer     jetstream.ErrorCode = 10099 // a WorkQueue, one receives all of it
	CodeQueueOverlap         jetstream.ErrorCode = 10100
	CodeMaxAckPending        jetstream.ErrorCode = 10121
	CodeConsumerExists                           = jetstream.JSErrCodeConsumerExists
	CodeDuplicateInFlight    jetstream.ErrorCode = 10158
	CodeConcurrentLastSeq                        = jetstream.JSErrCodeStreamWrongLastSequenceConstant
	CodeNoTTLs               jetstream.ErrorCode = 10166 // in this stream
	CodeBatchIncomplete      jetstream.ErrorCode = 10176
	CodeBatchTooLarge        jetstream.ErrorCode = 10199
	CodeBatchDuplicate       jetstream.ErrorCode = 10201
	CodeInvalidReset         jetstream.ErrorCode = 10204 // to where the consumer cannot be
	CodeBatchTooManyInFlight jetstream.ErrorCode = 10210
	CodeTimeZoneInvalid      jetstream.ErrorCode = 10223 // of a schedule
)

// About adds what an error is about. natty's name stands once, at the beginning.
func About(what string, err error) error { return fmt.Errorf("natty: %s: %w", what, inner{err}) }

type inner struct{ error }

func (e inner) Error() string { return strings.TrimPrefix(e.error.Error(), "natty: ") }

func (e inner) Unwrap() error { return e.error }

// class is what an error of the server means for whoever sent the request. From passing
// on, nothing is wrong with the request.
type class uint8

const (
	// final: the server did nothing, and would do nothing again.
	final class = iota + 1
	// missing: the stream or the durable is not there.
	missing
	// passing: the server did nothing, and may carry out the same request a moment
	// later.
	passing
	// blocked: the server did nothing. Nothing is wrong with the request, but somebody
	// has to act before it can succeed: a call fails at once, what runs for long may
	// wait.
	blocked
	// unknown: the server failed on the way, and may have carried out the request.
	unknown
)

// serverErrors has every error code that a server can answer with, by class and reason.
// The codes are those of nats-server's errors.json, where each has its text. The server
// never reuses a code, so that the table covers older servers too.
var serverErrors = []struct {
	class  class
	reason string
	codes  []jetstream.ErrorCode
}{
	{missing, "no such stream or consumer", []jetstream.ErrorCode{10014, 10059, 10149}},

	// The cluster, or the part of it that would have to answer, is not ready.
	{passing, "the answer of only some servers", []jetstream.ErrorCode{10004}},
	{passing, "no peers to place it on, as just after a start", []jetstream.ErrorCode{10005}},
	{passing, "no leader, or one that changes", []jetstream.ErrorCode{10007, 10008, 10009}},
	{passing, "JetStream does not answer, or is being shut down", []jetstream.ErrorCode{10076}},
	{passing, "all servers that have it are offline", []jetstream.ErrorCode{10118, 10119}},
	// During an upgrade a server may be too old for what a newer one has made.
	{passing, "offline: the server cannot run it yet", []jetstream.ErrorCode{10194, 10195}},
	{passing, "the leader does not know its last messages yet", []jetstream.ErrorCode{10163}},
	// Something else has to end first.
	{passing, "a change of the cluster or the stream is under way",
		[]jetstream.ErrorCode{10075, 10124, 10202, 10226}},
	{passing, "a write of the same id or subject is under way", []jetstream.ErrorCode{10158, 10164}},
	// The server, too, may run out: of memory, of disk, or of its limit on replicated
	// assets. The leader then steps down, so that another server may have room.
	{passing, "the server has no resources left", []jetstream.ErrorCode{10023}},
	{passing, "too many requests or batches at once", []jetstream.ErrorCode{10167, 10210, 10211}},

	{blocked, "no such account, or one without JetStream", []jetstream.ErrorCode{10035, 10039}},
	{blocked, "a limit of the account or the server, until something is removed",
		[]jetstream.ErrorCode{10028, 10047, 10053}},
	// The server could not do it and says why in the text only: a full disk or a
	// removal that is under way, but also a setting that it does not allow.
	{unknown, "making, changing or removing a stream failed",
		[]jetstream.ErrorCode{10048, 10049, 10050, 10051, 10069, 10096, 10110}},
	{unknown, "making or changing a consumer failed", []jetstream.ErrorCode{10012, 10104}},
	{unknown, "storing a message failed, or the stream is full", []jetstream.ErrorCode{10077}},
	// A replica has to catch up. The next attempt finds out whether the message is
	// stored.
	{unknown, "a replica is behind", []jetstream.ErrorCode{10063}},
	{unknown, "a vote among servers failed", []jetstream.ErrorCode{10041}},
	{unknown, "a mirror or source cannot be followed", []jetstream.ErrorCode{10029, 10045, 10228}},
	{unknown, "a snapshot or its restoration failed", []jetstream.ErrorCode{10042, 10062, 10064, 10072}},
	{unknown, "a template failed (before 2.12)", []jetstream.ErrorCode{10066, 10067}},

	{final, "a bad request", []jetstream.ErrorCode{10003, 10015, 10025, 10038, 10056, 10073, 10157}},
	{final, "not on this server, or not at its version",
		[]jetstream.ErrorCode{10006, 10010, 10011, 10036, 10074, 10185}},
	{final, "no such message, template or peer",
		[]jetstream.ErrorCode{10037, 10040, 10043, 10044, 10057, 10068, 10129}},
	{final, "a limit of the account", []jetstream.ErrorCode{10002, 10026, 10027, 10113, 10120, 10122}},
	{final, "a rescue of the cluster that was not applied", []jetstream.ErrorCode{10224}},

	// A publish, refused as it is: for its size, its headers, or a condition that
	// failed.
	{final, "too large", []jetstream.ErrorCode{10054, 10097}},
	{final, "an expectation that did not hold", []jetstream.ErrorCode{10060, 10070, 10071, 10180, 10193}},
	{final, "a sealed stream, or too many subjects to list", []jetstream.ErrorCode{10109, 10117}},
	{final, "a TTL", []jetstream.ErrorCode{10165, 10166}},
	{final, "a roll-up, checked before the message is stored", []jetstream.ErrorCode{10111}},
	{final, "a counter", []jetstream.ErrorCode{10168, 10169, 10170, 10171, 10172}},
	{final, "an atomic batch", []jetstream.ErrorCode{10174, 10175, 10176, 10177, 10179, 10199, 10200, 10201}},
	{final, "a fast batch", []jetstream.ErrorCode{10205, 10206, 10207, 10208}},
	{final, "a schedule",
		[]jetstream.ErrorCode{10188, 10189, 10190, 10191, 10192, 10203, 10212, 10223}},
	{final, "a header for the server's own use", []jetstream.ErrorCode{10227}},

	// Settings that the server refuses.
	{final, "settings of a stream", []jetstream.ErrorCode{
		10052, 10058, 10061, 10065, 10123, 10128, 10130, 10133, 10155, 10156}},
	{final, "settings of a mirror", []jetstream.ErrorCode{
		10030, 10031, 10032, 10033, 10034, 10055, 10142, 10143, 10150, 10151, 10152, 10154,
		10173, 10186, 10198, 10209, 10213, 10214}},
	{final, "settings of a source", []jetstream.ErrorCode{
		10021, 10022, 10024, 10046, 10140, 10141, 10144, 10145, 10146, 10147, 10187, 10215,
		10216, 10217}},
	{final, "the name of a consumer, or one that is taken", []jetstream.ErrorCode{
		10013, 10016, 10017, 10018, 10019, 10020, 10102, 10103, 10105, 10106, 10127, 10132,
		10148, 10225}},
	{final, "filters of a consumer", []jetstream.ErrorCode{
		10093, 10099, 10100, 10131, 10136, 10137, 10138, 10139}},
	{final, "priority groups of a consumer", []jetstream.ErrorCode{
		10159, 10160, 10161, 10162, 10178, 10196, 10197}},
	{final, "other settings of a consumer", []jetstream.ErrorCode{
		10078, 10079, 10080, 10081, 10082, 10083, 10084, 10085, 10086, 10087, 10088, 10089,
		10090, 10091, 10092, 10094, 10095, 10098, 10101, 10107, 10108, 10112, 10114, 10115,
		10116, 10121, 10125, 10126, 10134, 10135, 10153, 10181, 10182, 10183, 10184, 10218,
		10219, 10220, 10221, 10222}},
	{final, "a reset to where a consumer cannot be", []jetstream.ErrorCode{10204}},
}

// classes are the classes of serverErrors by code.
var classes = func() map[jetstream.ErrorCode]class {
	byCode := make(map[jetstream.ErrorCode]class)
	for _, group := range serverErrors {
		for _, code := range group.codes {
			byCode[code] = group.class
		}
	}
	return byCode
}()

// classOf returns the class of the server's error in err, and 0 if there is none in it.
// The status says what a code means that is newer than the table.
func classOf(err error) class {
	refused, ok := errors.AsType[*jetstream.APIError](err)
	switch {
	case !ok:
		return 0
	case classes[refused.ErrorCode] != 0:
		return classes[refused.ErrorCode]
	case refused.Code == http.StatusTooManyRequests:
		return passing
	case refused.Code >= http.StatusInternalServerError:
		return unknown
	}
	return final
}

// Code returns the server's code in err, or 0.
func Code(err error) jetstream.ErrorCode {
	if apiErr, ok := errors.AsType[*jetstream.APIError](err); ok {
		return apiErr.ErrorCode
	}
	return 0
}

// Passing reports whether an API request that failed with err may succeed when it is
// repeated as it is: there was no connection, no leader or no answer, or the server had
// no room at the moment, or refuses the subscription for answers.
func Passing(err error) bool {
	if c := classOf(err); c != 0 {
		return c == passing
	}
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrDisconnected) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, respmux.ErrInbox)
}

// Missing reports that the stream or the durable is not there. A durable may be missing
// just after it was made: to the request that makes it, one that is still being deleted
// exists (server 2.15).
func Missing(err error) bool { return classOf(err) == missing }

// ServerFault reports that the server answered with an error although nothing is wrong
// with the request. It fails for a moment, for example, to make a durable while it
// still removes the files of the one before (server 2.15).
func ServerFault(err error) bool { return classOf(err) >= passing }

// Unknown reports that the server answered with an error, and may have carried out the
// request all the same.
func Unknown(err error) bool { return classOf(err) == unknown }
