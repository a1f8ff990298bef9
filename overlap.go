package natty

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// explainOverlap says with which consumers those filters overlap that a WorkQueue stream has refused (nats-server#4957):
// it gives each message to one consumer alone, and the server does not say which one is in the way.
func (c *Client) explainOverlap(ctx context.Context, stream string, cfg ConsumerConfig, refused error) error {
	others, err := c.overlapping(ctx, stream, cfg)
	if err != nil || len(others) == 0 {
		return fmt.Errorf("natty: consumer %q: a WorkQueue stream gives each message to one consumer, and another one of %s receives some of these subjects: %w",
			cfg.Durable, stream, refused)
	}
	return &ConfigError{
		Field: "subjects", Value: strings.Join(cfg.Subjects, " "),
		Reason: fmt.Sprintf("overlaps with %s of the WorkQueue stream %s, which gives each message to one consumer; use that durable's name to share its work, or other subjects",
			strings.Join(others, " and "), stream),
		Err: refused,
	}
}

// overlapping describes the other consumers of a stream that receive subjects of cfg.
func (c *Client) overlapping(ctx context.Context, stream string, cfg ConsumerConfig) (found []string, err error) {
	err = c.eachConsumer(ctx, stream, func(name string, config jetstream.ConsumerConfig) {
		filters := durable{config: config}.filters()
		if name != cfg.Durable && overlapAny(filters, cfg.Subjects) {
			found = append(found, fmt.Sprintf("consumer %q (%s)", name, cmp.Or(strings.Join(filters, " "), "all subjects")))
		}
	})
	return found, err
}

// eachConsumer calls f for the consumers of a stream.
func (c *Client) eachConsumer(ctx context.Context, stream string, f func(name string, config jetstream.ConsumerConfig)) error {
	for offset := 0; ; {
		var page struct {
			Total     int `json:"total"`
			Consumers []struct {
				Name   string                   `json:"name"`
				Config jetstream.ConsumerConfig `json:"config"`
			} `json:"consumers"`
		}
		if err := c.query(ctx, "CONSUMER.LIST."+stream, map[string]int{"offset": offset}, &page); err != nil {
			return err
		}
		for _, one := range page.Consumers {
			f(one.Name, one.Config)
		}
		offset += len(page.Consumers)
		if offset >= page.Total || len(page.Consumers) == 0 {
			return nil
		}
	}
}

// overlapAny compares two lists of filters, of which an empty one means all subjects.
func overlapAny(a, b []string) bool {
	if len(a) == 0 || len(b) == 0 {
		return true
	}
	return slices.ContainsFunc(a, func(x string) bool {
		return slices.ContainsFunc(b, func(y string) bool { return overlap(x, y) })
	})
}

// overlap reports whether there are subjects that both filters receive.
func overlap(a, b string) bool {
	for a != "" && b != "" {
		var x, y string
		x, a, _ = strings.Cut(a, ".")
		y, b, _ = strings.Cut(b, ".")
		if x == ">" || y == ">" {
			return true
		}
		if x != "*" && y != "*" && x != y {
			return false
		}
	}
	return a == "" && b == ""
}
