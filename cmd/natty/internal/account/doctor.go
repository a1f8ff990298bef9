package account

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/subject"
)

// Examine returns what is wrong with the account. service is what a service file says;
// nil for none.
func (a *Account) Examine(ctx context.Context, service *natty.Service) ([]Finding, error) {
	s, err := a.Read(ctx)
	if err != nil {
		return nil, err
	}
	f := findings{}
	byStream := map[string][]*Consumer{}
	for i := range s.Consumers {
		c := &s.Consumers[i]
		byStream[c.Stream] = append(byStream[c.Stream], c)
	}
	files := servicesOf(service)
	for i := range s.Consumers {
		c := &s.Consumers[i]
		f.stalled(s.Time, c)
		f.limits(c, files.sets(c, func(cfg *natty.ConsumerConfig) bool { return cfg.MaxDeliver > 0 }))
	}
	for i := range s.Streams {
		st := &s.Streams[i]
		letters := slices.ContainsFunc(s.Dead, func(d Dead) bool { return d.Stream == st.Name })
		f.stream(s, st, letters)
		f.filters(st, byStream[st.Name])
		a.content(ctx, s, &f, st, byStream[st.Name])
	}
	for _, d := range s.Dead {
		f.add(levelWarning, "subject "+d.Subject, fmt.Sprintf("dead letters: %d; the newest says: %s", d.Count, cmp.Or(d.Reason, "nothing")),
			"look with: natty dead ls %[1]s; mend the cause, then: natty dead redrive %[1]s", d.Subject)
	}
	a.storage(ctx, s, &f)
	f.service(s, files)
	a.permissions(ctx, s, &f, files, servicesOf(service))
	slices.SortStableFunc(f, func(x, y Finding) int { return cmp.Compare(x.Level, y.Level) })
	return f, ctx.Err()
}

// filters reports filters that can match nothing, because the stream stores no such
// subject.
func (f *findings) filters(st *Stream, consumers []*Consumer) {
	if len(st.Subjects) == 0 || st.info.Config.Mirror != nil || len(st.info.Config.Sources) > 0 {
		return // it stores what other streams do
	}
	for _, c := range consumers {
		for _, filter := range c.Filters {
			if !subject.OverlapAny([]string{filter}, st.Subjects) {
				f.add(levelError, nameOf(st.Name, c.Name),
					fmt.Sprintf("its filter %s matches nothing: the stream stores %s", filter, strings.Join(st.Subjects, ", ")),
					"correct the filter in the service, or add the subject: nats stream edit %s --subjects=…", st.Name)
			}
		}
	}
}

// content reports filters without a message, and messages without a consumer.
func (a *Account) content(ctx context.Context, s *Snapshot, f *findings, st *Stream, consumers []*Consumer) {
	queue := st.info.Config.Retention == jetstream.WorkQueuePolicy
	unused := func(c *Consumer) bool { return len(c.Filters) > 0 && c.info.Delivered.Consumer == 0 && c.Pending == 0 }
	if st.Messages == 0 || !queue && !slices.ContainsFunc(consumers, unused) {
		return
	}
	subjects, messages, err := a.contents(ctx, st.Name)
	if err != nil {
		s.problem(UnreadSubjects, "the subjects of stream "+st.Name, err)
		return
	}
	if messages == 0 {
		return
	}
	for _, c := range consumers {
		for _, filter := range c.Filters {
			if unused(c) && subject.OverlapAny([]string{filter}, st.Subjects) && !held(subjects, filter) {
				f.add(levelWarning, nameOf(st.Name, c.Name),
					fmt.Sprintf("its filter %s matches none of the %d messages in the stream, and never did", filter, messages),
					"compare it with the subjects there are: nats stream subjects %s", st.Name)
			}
		}
	}
	if queue {
		f.orphans(st, subjects, consumers)
	}
}

// contents counts the messages of a stream by subject. It leaves out those that hold
// schedules, which no consumer is to receive.
func (a *Account) contents(ctx context.Context, name string) (subjects map[string]uint64, messages uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	err = a.ask(ctx, "STREAM.INFO."+name, func(ctx context.Context) error {
		stream, err := a.js.Stream(ctx, name)
		if err != nil {
			return err
		}
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
		if err == nil {
			subjects = info.State.Subjects
		}
		return err
	})
	maps.DeleteFunc(subjects, func(s string, _ uint64) bool { return durable.KeepsOut(name, s) })
	for _, count := range subjects {
		messages += count
	}
	return subjects, messages, err
}

func held(subjects map[string]uint64, filter string) bool {
	for s := range subjects {
		if subject.Covers(filter, s) {
			return true
		}
	}
	return false
}

// orphans reports messages of a work queue that stay for ever, since no consumer
// matches them.
func (f *findings) orphans(st *Stream, subjects map[string]uint64, consumers []*Consumer) {
	var names []string
	var n uint64
	for s, count := range subjects {
		matched := slices.ContainsFunc(consumers, func(c *Consumer) bool {
			return len(c.Filters) == 0 || subject.AnyCovers(c.Filters, s)
		})
		if !matched {
			n += count
			names = append(names, s)
		}
	}
	if n == 0 {
		return
	}
	slices.Sort(names)
	shown := strings.Join(names[:min(3, len(names))], ", ")
	if more := len(names) - 3; more > 0 {
		shown += fmt.Sprintf(" and %d more subjects", more)
	}
	f.add(levelError, "stream "+st.Name,
		fmt.Sprintf("is a work queue, and no consumer matches %d of its messages, on %s", n, shown),
		"start the service that consumes them, or remove them: nats stream purge %s --subject=%s", st.Name, names[0])
}

// storage reports an account that is nearly full.
func (a *Account) storage(ctx context.Context, s *Snapshot, f *findings) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	err := a.ask(ctx, "INFO", func(ctx context.Context) (err error) {
		s.account, err = a.js.AccountInfo(ctx)
		return err
	})
	if err != nil {
		s.problem(UnreadLimits, "the limits of the account", err)
		return
	}
	have, most := s.account, s.account.Limits
	for _, use := range []struct {
		what       string
		have, most float64
		then       string
	}{
		{"file storage", float64(have.Store), float64(most.MaxStore), "publishing"},
		{"memory storage", float64(have.Memory), float64(most.MaxMemory), "publishing to streams in memory"},
		{"streams", float64(have.Streams), float64(most.MaxStreams), "making a stream or a bucket"},
		{"consumers", float64(have.Consumers), float64(most.MaxConsumers), "making a consumer"},
	} {
		if use.most > 0 && use.have >= 0.9*use.most {
			f.add(levelError, "account",
				fmt.Sprintf("%.0f%% of its %s are used; at the limit %s fails", 100*use.have/use.most, use.what, use.then),
				"raise the account's limit, or delete what is not needed: nats account info")
		}
	}
}

// userInfo is what the server says about the user of a connection.
type userInfo struct {
	Data struct {
		User        string `json:"user"`
		Permissions *struct {
			Publish   *permission `json:"publish"`
			Subscribe *permission `json:"subscribe"`
		} `json:"permissions"`
	} `json:"data"`
}

type permission struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

// refuses reports whether a subject is not allowed.
func (p *permission) refuses(s string) bool {
	return p != nil && (len(p.Allow) > 0 && !subject.AnyCovers(p.Allow, s) || subject.AnyCovers(p.Deny, s))
}

// permissions reports what this user may not do: what Read was refused, and what the
// service needs. files have the streams that were found, and written those of the file.
func (a *Account) permissions(ctx context.Context, s *Snapshot, f *findings, files, written services) {
	var refused []string
	for _, p := range s.Problems {
		if p.refused != "" {
			refused = append(refused, p.refused)
		} else {
			f.add(levelWarning, "account", p.Text, "run natty doctor again; see the server's log if it stays")
		}
	}
	slices.Sort(refused)
	for _, api := range slices.Compact(refused) {
		f.add(levelWarning, "user", "may not publish to "+api+", so that part of the account was not examined",
			"allow it in the user's permissions, or run natty doctor as another user")
	}
	if len(files) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var user userInfo
	msg, err := a.client.Conn().RequestWithContext(ctx, "$SYS.REQ.USER.INFO", nil)
	if err != nil || json.Unmarshal(msg.Data, &user) != nil || user.Data.Permissions == nil {
		return // an older server, or one that lets everybody do everything
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		cfg := files[name]
		for _, need := range needs(a.prefix(), &cfg, written[name].Stream == "") {
			if user.Data.Permissions.Publish.refuses(need) {
				f.add(levelError, "service consumer "+name, fmt.Sprintf("the user %s may not publish to %s", cmp.Or(user.Data.User, "of this connection"), need),
					"allow it in the user's permissions; if the service logs in as another user, run natty doctor with its login")
			}
		}
	}
}

// needs returns the subjects that a consumer publishes to when its durable exists. search
// says that the file does not name its stream.
func needs(prefix string, cfg *natty.ConsumerConfig, search bool) (all []string) {
	if search || cfg.DeadLetter != "" {
		all = append(all, prefix+".STREAM.NAMES")
	}
	if cfg.DeadLetter != "" {
		all = append(all, cfg.DeadLetter)
	}
	if cfg.Stream == "" || cfg.Durable == "" {
		return all
	}
	at := cfg.Stream + "." + cfg.Durable
	all = append(all, prefix+".STREAM.INFO."+cfg.Stream, prefix+".CONSUMER.INFO."+at,
		prefix+".CONSUMER.MSG.NEXT."+at, "$JS.ACK."+at+".>")
	if cfg.Exclusive {
		all = append(all, prefix+".CONSUMER.RESET."+at)
	}
	return all
}
