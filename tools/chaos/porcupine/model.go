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

// unknownRevision is the revision of an answer without one.
const unknownRevision = -1

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
	revision int64  // or unknownRevision
	created  *bool
	changed  *bool // whether the answer says that the save changed the message
	nothing  bool  // a refusal implies that nothing is stored
}

// state is what is stored under one id.
type state struct {
	present bool
	digest  string
	// revision is unknownRevision if nothing is stored, or if no answer contains that of this version.
	revision int64
	// floor is the highest revision known so far; every later change has a higher one.
	floor int64
}

func (s state) String() string {
	switch {
	case !s.present:
		return "nothing stored"
	case s.revision == unknownRevision:
		return fmt.Sprintf("%s at a revision above %d", short(s.digest), s.floor)
	}
	return fmt.Sprintf("%s at revision %d", short(s.digest), s.revision)
}

// has reports whether the state can have the revision in an answer, if it contains one.
func (s state) has(revision int64) bool { return revision == unknownRevision || s.revision == revision }

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
		// The library takes the stored message for its own if it equals the one it sent again.
		confirmed := in.repeated && !out.open && s.present && s.digest == in.digest
		return keepIf(s, confirmed && s.has(out.revision))
	}
	if s.present && (in.skip || s.digest == in.digest) {
		claimsChange := is(out.created, true) || is(out.changed, true)
		return keepIf(s, !claimsChange && s.has(out.revision))
	}
	if is(out.changed, false) || is(out.created, s.present) {
		return nil
	}
	if out.revision != unknownRevision {
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
		known := out.revision == unknownRevision || s.present && s.has(out.revision)
		return keepIf(s, known && !matches(s, out.revision, in.guard))
	}
	return []state{s}
}

// matches reports whether a guard that was refused is the stored revision.
func matches(s state, known int64, guard *int64) bool {
	return guard != nil && s.present && (*guard == known || *guard == s.revision)
}

// guardHolds reports whether a write with this if_revision is accepted.
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
	all := []state{{present: true, digest: digest, revision: unknownRevision, floor: floor}}
	for _, revision := range slices.Concat(r.revisions[digest], r.loose) {
		if revision > floor {
			all = append(all, version(digest, revision))
		}
	}
	return all
}

// nothing is the state after a deletion.
func nothing(floor int64) state { return state{revision: unknownRevision, floor: floor} }

func version(digest string, revision int64) state {
	return state{present: true, digest: digest, revision: revision, floor: revision}
}

func keepIf(s state, possible bool) []state {
	if possible {
		return []state{s}
	}
	return nil
}

func is(known *bool, value bool) bool { return known != nil && *known == value }

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
