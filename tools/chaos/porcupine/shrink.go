package main

import (
	"cmp"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	// shrinkBudget limits the time in which the proof of one violation is made shorter.
	shrinkBudget = 500 * time.Millisecond
	// shrinkTimeout limits each check on the way: an easy violation is found in milliseconds.
	shrinkTimeout = 50 * time.Millisecond
)

// shrinker looks for fewer calls on an id that have no order either.
type shrinker struct {
	// model has the revisions of all calls: with fewer it would allow less than it should.
	model    porcupine.Model
	deadline time.Time
}

// shrink returns the subject with fewer calls: only what began before the earliest impossible
// answer, and after the last moment from which it is impossible whatever was stored then;
// without reads, and without answers of writes, that do not matter.
func (s *subject) shrink() *subject {
	by := shrinker{s.register().model(), time.Now().Add(shrinkBudget)}
	few := *s
	few.calls = by.earliest(s.calls)
	by.model = s.anything().model()
	if few.anyStart = by.wrong(few.calls); few.anyStart {
		few.calls = by.latest(few.calls)
	} else {
		by.model = s.register().model()
	}
	few.calls = by.leaveOut(few.calls, func(call porcupine.Operation) bool { return !writes(call) })
	few.calls = by.leaveOut(few.calls, writes)
	return &few
}

// wrong reports whether calls have no order, as far as the time limit allows to decide.
func (by shrinker) wrong(calls []porcupine.Operation) bool {
	left := min(shrinkTimeout, time.Until(by.deadline))
	return left > 0 && porcupine.CheckOperationsTimeout(by.model, calls, left) == porcupine.Illegal
}

// earliest returns what is known at the first moment at which the answers are impossible.
func (by shrinker) earliest(calls []porcupine.Operation) []porcupine.Operation {
	ends := slices.Clone(calls)
	slices.SortFunc(ends, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	low, high := 0, len(ends)-1
	for low < high {
		middle := (low + high) / 2
		if by.wrong(until(calls, ends[middle].Return)) {
			high = middle
		} else {
			low = middle + 1
		}
	}
	if few := until(calls, ends[high].Return); by.wrong(few) {
		return few
	}
	return calls // a check timed out on the way
}

// latest leaves out the beginning, as far as the calls after it suffice.
func (by shrinker) latest(calls []porcupine.Operation) []porcupine.Operation {
	ends := slices.Clone(calls)
	slices.SortFunc(ends, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	low, high := 0, len(ends)-1
	for low < high {
		middle := (low + high + 1) / 2
		if by.wrong(since(calls, ends[middle].Return)) {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return since(calls, ends[low].Return)
}

// since returns the calls that can take effect at a moment or after it.
func since(calls []porcupine.Operation, moment int64) []porcupine.Operation {
	return slices.DeleteFunc(slices.Clone(calls), func(call porcupine.Operation) bool {
		return call.Return < moment
	})
}

// leaveOut leaves out the chosen calls that are not needed, the earliest first, so that the
// proof keeps the calls next to the violation.
func (by shrinker) leaveOut(
	calls []porcupine.Operation, chosen func(porcupine.Operation) bool,
) []porcupine.Operation {
	for index := 0; index < len(calls); {
		if calls[index].Return != never && chosen(calls[index]) {
			if rest := without(calls, index); by.wrong(rest) {
				index -= len(calls) - len(rest)
				calls = rest
			}
		}
		index++
	}
	return calls
}

// until returns what is known at a moment: a write that has not ended is of unknown outcome.
func until(calls []porcupine.Operation, moment int64) []porcupine.Operation {
	var known []porcupine.Operation
	for _, call := range calls {
		if call.Call > moment {
			continue
		}
		if call.Return > moment {
			if !writes(call) {
				continue
			}
			call.Output, call.Return = response{open: true, revision: unknownRevision}, never
		}
		known = append(known, call)
	}
	return known
}

// without leaves out a read or refusal; of a write it leaves out the answer only, because the
// effect may be what other answers show.
func without(calls []porcupine.Operation, index int) []porcupine.Operation {
	rest := slices.Clone(calls)
	if !writes(rest[index]) {
		return slices.Delete(rest, index, index+1)
	}
	rest[index].Output, rest[index].Return = response{open: true, revision: unknownRevision}, never
	return rest
}

// writes reports whether a call can change what is stored.
func writes(call porcupine.Operation) bool {
	verb := call.Input.(request).verb
	return (verb == save || verb == remove) && call.Output.(response).code == ""
}
