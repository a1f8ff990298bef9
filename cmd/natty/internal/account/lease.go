package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	bucketPrefix = "KV_"
	// headerLease is a header of the keys that natty's leases own, and termSuffix the end
	// of the key that fences an election's writes.
	headerLease = "Natty-Lease"
	termSuffix  = "._term"

	// A bucket with more keys or bytes is not one of leases, and reading it would cost
	// too much.
	maxLeases     = 1000
	maxLeaseBytes = 4 << 20
)

// readLeases returns the leases in a stream, if it is that of a bucket.
func (a *Account) readLeases(ctx context.Context, info *jetstream.StreamInfo) ([]Lease, error) {
	cfg, state := &info.Config, &info.State
	bucket, ok := strings.CutPrefix(cfg.Name, bucketPrefix)
	switch {
	case !ok, cfg.MaxMsgsPerSubject != 1, cfg.MaxAge == 0 && !cfg.AllowMsgTTL, !cfg.AllowDirect,
		state.NumSubjects > maxLeases, state.Bytes > maxLeaseBytes, state.Msgs == 0:
		return nil, nil
	}
	msgs, err := a.lastOfAll(ctx, cfg.Name, "$KV."+bucket+".>")
	if err != nil {
		return nil, err
	}
	var all []Lease
	for _, msg := range msgs {
		key := strings.TrimPrefix(msg.Header.Get(jetstream.SubjectHeader), "$KV."+bucket+".")
		if msg.Header.Get(headerLease) == "" || msg.Header.Get("KV-Operation") != "" ||
			msg.Header.Get(jetstream.MarkerReasonHeader) != "" || strings.HasSuffix(key, termSuffix) {
			continue
		}
		l := Lease{Kind: "leader", Bucket: bucket, Key: key, Owner: string(msg.Data)}
		l.Renewed, _ = time.Parse(time.RFC3339Nano, msg.Header.Get(jetstream.TimeStampHeaer))
		ttl := cfg.MaxAge
		if own := msg.Header.Get(jetstream.MsgTTLHeader); own != "" {
			if own == "never" { // a value that the leader has put
				continue
			}
			l.Kind = "lock"
			ttl, _ = time.ParseDuration(own)
		}
		l.Expires = l.Renewed.Add(ttl)
		all = append(all, l)
	}
	return all, nil
}

// lastOfAll returns the last message of each subject, in one request.
func (a *Account) lastOfAll(ctx context.Context, stream, filter string) ([]*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	nc := a.client.Conn()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	request, err := json.Marshal(map[string]any{"multi_last": []string{filter}, "batch": maxLeases})
	if err != nil {
		return nil, err
	}
	var all []*nats.Msg
	err = a.ask(ctx, "DIRECT.GET."+stream, func(ctx context.Context) error {
		subject := a.prefix() + ".DIRECT.GET." + stream
		if err := nc.PublishRequest(subject, inbox, request); err != nil {
			return err
		}
		for {
			msg, err := sub.NextMsgWithContext(ctx)
			if err != nil {
				return err
			}
			switch status := msg.Header.Get("Status"); status {
			case "":
				all = append(all, msg)
			case "204": // the end of the batch
				return nil
			case "404":
				return nil
			case "503":
				return errors.New("the stream has no leader")
			default:
				return fmt.Errorf("the server answers %s %s", status, msg.Header.Get("Description"))
			}
		}
	})
	return all, err
}
