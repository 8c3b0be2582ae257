package main

import (
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/anishathalye/porcupine"
)

// verb is what a call does to one id, or tells about it.
type verb int

const (
	save   verb = iota // Save, or one message of a batch
	remove             // Delete
	show               // an answer contains the message
	absent             // the answer is that nothing is stored
	lack               // a list, search or export does not contain the message
)

// untold is the revision where an answer tells none.
const untold = -1

// request is the input of a Porcupine operation: a call, as far as it concerns one id.
type request struct {
	operation int // number in the history
	kind      string
	verb      verb
	digest    string
	label     string // first word of the content, for explanations
	guard     *int64 // if_revision
	skip      bool   // ON_CONFLICT_SKIP
	repeated  bool   // sent more than once by the client library
	among     map[string]bool
}

// response is the output of a Porcupine operation.
type response struct {
	open     bool   // outcome unknown: the effect is possible, now or never
	code     string // of a refusal
	revision int64  // or untold
	created  *bool
	changed  *bool // whether the answer tells that the save changed the message
	nothing  bool  // a refusal tells that nothing is stored
}

// state is what is stored under one id.
type state struct {
	present bool
	digest  string
	// revision is untold if nothing is stored, or if no answer tells that of this version.
	revision int64
	// floor is the highest revision known so far; every later change has a higher one.
	floor int64
}

func (s state) String() string {
	switch {
	case !s.present:
		return "nothing stored"
	case s.revision == untold:
		return fmt.Sprintf("%s at a revision above %d", short(s.digest), s.floor)
	}
	return fmt.Sprintf("%s at revision %d", short(s.digest), s.revision)
}

// has tells whether the state can have the revision that an answer told, if it told one.
func (s state) has(revision int64) bool { return revision == untold || s.revision == revision }

// register is the model of one id. It is nondeterministic in two ways: a call of unknown
// outcome has its effect or not, and the revision of a save that tells none is any revision
// that some answer tells, or one that no answer tells.
type register struct {
	initial []state
	// revisions holds the revisions that answers tell of each value.
	revisions map[string][]int64
	// loose holds revisions of which no answer tells the value.
	loose []int64
}

// next returns the states that can follow s, none if the answer is impossible in s.
func (r *register) next(s state, in request, out response) []state {
	if out.code != "" {
		return refuse(s, in, out)
	}
	switch in.verb {
	case save:
		return r.maybe(s, out, r.saved(s, in, out))
	case remove:
		return r.maybe(s, out, removed(s, in))
	default:
		return keepIf(s, observed(s, in, out))
	}
}

// maybe adds the unchanged state if the outcome of a write is unknown.
func (r *register) maybe(s state, out response, after []state) []state {
	if out.open && !slices.Contains(after, s) {
		return append(after, s)
	}
	return after
}

func (r *register) saved(s state, in request, out response) []state {
	if !guardHolds(s, in.guard) {
		return nil
	}
	if s.present && (in.skip || s.digest == in.digest) {
		claimsChange := is(out.created, true) || is(out.changed, true)
		return keepIf(s, !claimsChange && s.has(out.revision))
	}
	if is(out.changed, false) || is(out.created, s.present) {
		return nil
	}
	if out.revision != untold {
		return keepIf(version(in.digest, out.revision), out.revision > s.floor)
	}
	return r.versions(in.digest, s.floor)
}

func removed(s state, in request) []state {
	if !s.present {
		// The library takes NOT_FOUND for success if an earlier attempt may have worked.
		return keepIf(s, in.repeated)
	}
	return keepIf(nothing(s.floor), guardHolds(s, in.guard))
}

func observed(s state, in request, out response) bool {
	switch in.verb {
	case show:
		return s.present && s.digest == in.digest && s.has(out.revision)
	case absent:
		return !s.present
	default:
		return !s.present || !in.among[s.digest]
	}
}

// refuse returns s if a refusal is possible in it.
func refuse(s state, in request, out response) []state {
	if out.nothing {
		return keepIf(s, !s.present)
	}
	switch out.code {
	case "ALREADY_EXISTS":
		return keepIf(s, s.present && s.has(out.revision))
	case "ABORTED":
		told := out.revision == untold || s.present && s.has(out.revision)
		return keepIf(s, told && !matches(s, out.revision, in.guard))
	}
	return []state{s}
}

// matches tells whether a guard that was refused is the stored revision.
func matches(s state, told int64, guard *int64) bool {
	return guard != nil && s.present && (*guard == told || *guard == s.revision)
}

// guardHolds tells whether a write with this if_revision is accepted.
func guardHolds(s state, guard *int64) bool {
	switch {
	case guard == nil:
		return true
	case *guard == 0:
		return !s.present
	}
	return s.present && s.revision == *guard
}

// versions returns the states with a value whose revision is not known, but above the floor.
func (r *register) versions(digest string, floor int64) []state {
	all := []state{{present: true, digest: digest, revision: untold, floor: floor}}
	for _, revision := range slices.Concat(r.revisions[digest], r.loose) {
		if revision > floor {
			all = append(all, version(digest, revision))
		}
	}
	return all
}

// nothing is the state after a deletion.
func nothing(floor int64) state { return state{revision: untold, floor: floor} }

func version(digest string, revision int64) state {
	return state{present: true, digest: digest, revision: revision, floor: revision}
}

func keepIf(s state, possible bool) []state {
	if possible {
		return []state{s}
	}
	return nil
}

func is(told *bool, value bool) bool { return told != nil && *told == value }

// model returns the register as a Porcupine model.
func (r *register) model() porcupine.Model {
	seed := maphash.MakeSeed()
	nondeterministic := porcupine.NondeterministicModel{
		Init: func() []any { return boxed(r.initial) },
		Step: func(before, in, out any) []any {
			return boxed(r.next(before.(state), in.(request), out.(response)))
		},
		Hash:              func(s any) uint64 { return maphash.Comparable(seed, s.(state)) },
		DescribeOperation: func(in, out any) string { return describe(in.(request), out.(response)) },
		DescribeState:     func(s any) string { return s.(state).String() },
	}
	return nondeterministic.ToModel()
}

func boxed(states []state) []any {
	all := make([]any, 0, len(states))
	for _, one := range states {
		all = append(all, one)
	}
	return all
}
