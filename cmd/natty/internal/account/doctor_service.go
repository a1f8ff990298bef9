package account

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/subject"
)

// services are the consumers of a service file by their names in it, with the durables
// and the streams that natty would choose.
type services map[string]natty.ConsumerConfig

func servicesOf(s *natty.Service) services {
	all := services{}
	if s == nil {
		return all
	}
	for _, sc := range s.Consumers {
		if sc.Disabled {
			continue
		}
		cfg := sc.Consumer
		if cfg.Durable == "" && s.Config.Name != "" {
			switch {
			case len(cfg.Subjects) == 1:
				cfg.Durable = subject.DurableName(s.Config.Name, cfg.Subjects[0])
			case len(cfg.Subjects) == 0 && cfg.Stream != "":
				cfg.Durable = subject.DurableName(s.Config.Name, ">")
			}
		}
		all[sc.Name] = cfg
	}
	return all
}

// sets reports whether the file has a consumer of the durable for which ok holds.
func (all services) sets(c *Consumer, ok func(*natty.ConsumerConfig) bool) bool {
	for _, cfg := range all {
		if cfg.Durable == c.Name && (cfg.Stream == "" || cfg.Stream == c.Stream) && ok(&cfg) {
			return true
		}
	}
	return false
}

// service reports where the server differs from the service file.
func (f *findings) service(s *Snapshot, files services) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		cfg := files[name]
		about := "service consumer " + name
		if cfg.DeadLetter != "" && len(s.streamsOf(cfg.DeadLetter)) == 0 {
			f.add(levelError, about, fmt.Sprintf("its dead-letter subject %s is in no stream, so that it does not start", cfg.DeadLetter),
				"make one: nats stream add DEAD --subjects=%s --defaults", cfg.DeadLetter)
		}
		st := s.streamFor(f, about, &cfg)
		if st == nil {
			continue
		}
		files[name] = cfg
		at := slices.IndexFunc(s.Consumers, func(c Consumer) bool { return c.Stream == st.Name && c.Name == cfg.Durable })
		if at < 0 {
			f.add(levelWarning, about, fmt.Sprintf("its durable %s is not on stream %s", cfg.Durable, st.Name),
				"start the service, which makes it; if it did run before, somebody has deleted the durable")
			continue
		}
		f.drift(about, &cfg, &s.Consumers[at])
	}
}

// streamFor returns the stream of a service's consumer, or reports why there is none.
func (s *Snapshot) streamFor(f *findings, about string, cfg *natty.ConsumerConfig) *Stream {
	if cfg.Stream != "" {
		at := slices.IndexFunc(s.Streams, func(st Stream) bool { return st.Name == cfg.Stream })
		if at >= 0 {
			return &s.Streams[at]
		}
		f.add(levelError, about, fmt.Sprintf("its stream %s does not exist", cfg.Stream),
			"make it (nats stream add %s), or correct stream_name in the service file", cfg.Stream)
		return nil
	}
	for _, sub := range cfg.Subjects {
		if found := s.streamsOf(sub); len(found) > 0 {
			cfg.Stream = found[0].Name
			return found[0]
		}
	}
	f.add(levelError, about, fmt.Sprintf("no stream stores %s", strings.Join(cfg.Subjects, ", ")),
		"make a stream with the subject, or correct subjects in the service file")
	return nil
}

// streamsOf returns the streams that store a subject.
func (s *Snapshot) streamsOf(sub string) (all []*Stream) {
	for i := range s.Streams {
		if len(s.Streams[i].Subjects) > 0 && subject.OverlapAny([]string{sub}, s.Streams[i].Subjects) {
			all = append(all, &s.Streams[i])
		}
	}
	return all
}

// drift reports the settings in which a durable differs from the file.
func (f *findings) drift(about string, cfg *natty.ConsumerConfig, c *Consumer) {
	have := &c.info.Config
	var differ []string
	for _, sub := range cfg.Subjects {
		if len(c.Filters) > 0 && !subject.AnyCovers(c.Filters, sub) {
			differ = append(differ, fmt.Sprintf("the durable does not receive %s", sub))
		}
	}
	for _, filter := range c.Filters {
		if len(cfg.Subjects) > 0 && !subject.OverlapAny([]string{filter}, cfg.Subjects) {
			differ = append(differ, fmt.Sprintf("the durable also receives %s, which the file does not have", filter))
		}
	}
	if cfg.AckWait > 0 && cfg.AckWait != have.AckWait {
		differ = append(differ, fmt.Sprintf("ack_wait is %v, and %v in the file", have.AckWait, cfg.AckWait))
	}
	if cfg.MaxAckPending > 0 && cfg.MaxAckPending != have.MaxAckPending {
		differ = append(differ, fmt.Sprintf("max_ack_pending is %d, and %d in the file", have.MaxAckPending, cfg.MaxAckPending))
	}
	if cfg.MaxDeliver > 0 && have.MaxDeliver > 0 {
		differ = append(differ, fmt.Sprintf("the server still has its own max_deliver, %d", have.MaxDeliver))
	}
	for _, one := range differ {
		f.add(levelWarning, cmp.Or(about, c.Name), one,
			"restart the service with this file, which changes durable %s; or change the file", c.Name)
	}
}
