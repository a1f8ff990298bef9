package main

import (
	"context"

	"github.com/natty-go/natty/chaos/check"
	"github.com/natty-go/natty/chaos/nemesis"
)

// shrink looks for fewer faults after which one of the same checks fails. It makes a run
// for each half of the faults, and goes on with the half that does it.
func shrink(ctx context.Context, s settings, o outcome, tries int, say func(string, ...any)) []nemesis.Fault {
	failed := map[string]bool{}
	for _, p := range o.problems {
		failed[p.Check] = true
	}
	again := func(faults []nemesis.Fault) bool {
		try := s
		try.only, try.dir, try.tidy = []int{}, "", true
		for _, f := range faults {
			try.only = append(try.only, f.N)
		}
		result, err := once(ctx, try, func(string, ...any) {})
		return err == nil && anyOf(result.problems, failed)
	}
	faults := o.faults
	for len(faults) > 1 && tries > 0 && ctx.Err() == nil {
		half := len(faults) / 2
		smaller := false
		for _, part := range [][]nemesis.Fault{faults[:half], faults[half:]} {
			if tries == 0 || ctx.Err() != nil {
				break
			}
			tries--
			smaller = again(part)
			say("shrink: faults %s: %s", nemesis.Numbers(part), map[bool]string{true: "fails too", false: "holds"}[smaller])
			if smaller {
				faults = part
				break
			}
		}
		if !smaller {
			break
		}
	}
	return faults
}

// anyOf reports whether one of the problems is of a check that has failed before.
func anyOf(problems []check.Problem, failed map[string]bool) bool {
	for _, p := range problems {
		if failed[p.Check] {
			return true
		}
	}
	return false
}
