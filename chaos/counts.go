package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// counts says how much a run has done.
func counts(events []history.Event) string {
	n, faults := map[history.What]int{}, map[string]int{}
	full, doubled, seen := 0, 0, map[string]bool{}
	for _, e := range events {
		n[e.What]++
		switch e.What {
		case history.Fault:
			faults[e.Op]++
		case history.Refused:
			if e.Op == work.NoRoom {
				full++
			}
		case history.Done:
			if seen[e.ID] {
				doubled++
			}
			seen[e.ID] = true
		}
	}
	var parts []string
	for kind, count := range faults {
		parts = append(parts, fmt.Sprintf("%d %s", count, kind))
	}
	return fmt.Sprintf("%d messages sent, %d acknowledged, %d in doubt, %d refused (%d without room), %d stored; %d handled (%d again), "+
		"%d failures, %d dead letters; %d operations on keys; %d ownerships; faults: %s",
		n[history.Sent], n[history.Acked], n[history.Unknown], n[history.Refused], full, n[history.Stored],
		n[history.Done], doubled, n[history.Failed], n[history.Letter], n[history.Return], n[history.Own],
		strings.Join(sorted(parts), ", "))
}

// sinceChaos is a time of events in seconds since faults began.
func sinceChaos(events []history.Event, at int64) float64 {
	for _, e := range events {
		if e.What == history.Phase && e.Text == history.Chaos {
			return float64(at-e.At) / 1e9
		}
	}
	return 0
}

func sorted(parts []string) []string {
	slices.Sort(parts)
	return parts
}
