package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go/jetstream"
)

// publish shows both ways of nats.go. natty's Publish retries what is ambiguous; these leave that to their caller.
func publish(ctx context.Context, js jetstream.JetStream, _ jetstream.Stream, name string, out io.Writer) error {
	for i := range 50 { // one at a time: an acknowledgement for each before the next is sent
		ack, err := js.Publish(ctx, name+".new", fmt.Append(nil, i), jetstream.WithMsgID(fmt.Sprint("new-", i)))
		if err != nil {
			return err
		}
		if ack.Sequence == 50 {
			fmt.Fprintln(out, "   one at a time, up to sequence", ack.Sequence)
		}
	}
	var acks []jetstream.PubAckFuture
	for i := range 50 { // many on their way at a time
		ack, err := js.PublishAsync(name+".paid", fmt.Append(nil, i))
		if err != nil {
			return err
		}
		acks = append(acks, ack)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err(): // it may be stored all the same
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	fmt.Fprintf(out, "   %d at a time, all acknowledged\n", len(acks))
	return nil
}

// streams shows how streams are changed and listed. natty's EnsureStream does the first so that nothing else is undone.
func streams(ctx context.Context, js jetstream.JetStream, s jetstream.Stream, name string, out io.Writer) error {
	cfg := s.CachedInfo().Config // as it was when it was made; what is not in an update is set back
	cfg.Description = "what the tour shows"
	if _, err := js.UpdateStream(ctx, cfg); err != nil {
		return err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(name+".*"))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "   %q holds %d messages: %d new, %d paid\n", info.Config.Description, info.State.Msgs,
		info.State.Subjects[name+".new"], info.State.Subjects[name+".paid"])

	list := js.ListStreams(ctx, jetstream.WithStreamListSubject(name+".new")) // without the option: all
	for info := range list.Info() {
		fmt.Fprintln(out, "   the one with new ones has", info.State.NumSubjects, "subjects")
	}
	if list.Err() != nil {
		return list.Err()
	}
	names := js.StreamNames(ctx)
	found := false
	for n := range names.Name() {
		found = found || n == name
	}
	fmt.Fprintln(out, "   its name is among all names:", found)
	return names.Err()
}

// get shows single messages, by sequence and by subject.
func get(ctx context.Context, _ jetstream.JetStream, s jetstream.Stream, name string, out io.Writer) error {
	first, err := s.GetMsg(ctx, 1)
	if err != nil {
		return err
	}
	last, err := s.GetLastMsgForSubject(ctx, name+".paid")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "   the first is %s, the last one paid %s\n", first.Data, last.Data)
	if err := s.DeleteMsg(ctx, 1); err != nil {
		return err
	}
	_, err = s.GetMsg(ctx, 1)
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("the first should be gone: %v", err) //nolint:errorlint // it may be nil
	}
	fmt.Fprintln(out, "   the first is deleted")
	return nil
}

// purge shows how a stream is emptied. Consumers do not see what they have not handled by then; natty reports how many.
func purge(ctx context.Context, _ jetstream.JetStream, s jetstream.Stream, name string, out io.Writer) error {
	for _, step := range []struct {
		what string
		opts []jetstream.StreamPurgeOpt
	}{
		{"what comes before sequence 11", []jetstream.StreamPurgeOpt{jetstream.WithPurgeSequence(11)}},
		{"all that are new but ten", []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(name + ".new"), jetstream.WithPurgeKeep(10)}},
		{"everything", nil},
	} {
		if err := s.Purge(ctx, step.opts...); err != nil {
			return err
		}
		info, err := s.Info(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "   without %s: %d messages\n", step.what, info.State.Msgs)
	}
	return nil
}
