package main

import (
	"slices"
	"sort"
	"strconv"

	"github.com/anishathalye/porcupine"
)

// subject is one message id with all information in a history about it.
type subject struct {
	id      string
	calls   []porcupine.Operation
	values  map[string]value // values written under the id, by digest
	initial state
	// anyStart is set in a proof that holds whatever was stored before its first call.
	anyStart bool
}

// calls splits a history into the calls on each id.
type calls struct {
	subjects  map[string]*subject
	sequences sequences
	exports   map[int]*export
}

// split returns the ids of a history, in order.
func split(operations []*operation) []*subject {
	c := &calls{subjects: map[string]*subject{}, sequences: sequences{}, exports: map[int]*export{}}
	for _, one := range operations {
		c.learn(one)
		c.sequences.learn(one)
	}
	for _, one := range operations {
		c.read(one)
	}
	all := make([]*subject, 0, len(c.subjects))
	for _, one := range c.subjects {
		all = append(all, one)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	return all
}

func (c *calls) subject(id string) *subject {
	one := c.subjects[id]
	if one == nil {
		one = &subject{id: id, values: map[string]value{}, initial: nothing(0)}
		c.subjects[id] = one
	}
	return one
}

// learn records the values that an operation writes.
func (c *calls) learn(one *operation) {
	for _, v := range one.written() {
		c.subject(v.ID).values[v.Digest] = v
	}
}

// read adds the calls of one operation to the ids that it concerns.
func (c *calls) read(one *operation) {
	switch one.Kind {
	case "Baseline":
		for _, shown := range one.Answer.Items {
			c.subject(shown.ID).initial = version(shown.Digest, shown.Revision)
		}
	case "Save":
		v := one.Args.Value
		c.write(one, v.ID, request{verb: save, digest: v.Digest, label: v.Label})
	case "Delete":
		c.write(one, one.Args.ID, request{verb: remove})
	case "BulkSave":
		c.bulk(one)
	case "Get", "BatchGet":
		c.get(one)
	case "List", "Search":
		c.page(one)
	case "Export":
		c.stream(one)
	}
}

// add appends a call with the interval in which it takes effect.
func (c *calls) add(one *operation, id string, in request, out response, start, end int64) {
	in.operation, in.kind = *one.Number, one.Kind
	own := c.subject(id)
	own.calls = append(own.calls, porcupine.Operation{
		ClientId: one.Client + 1, // the reader of the baseline is client -1
		Input:    in,
		Output:   out,
		Call:     start,
		Return:   end,
	})
}

// write adds a Save or Delete: its answer, and every attempt whose outcome is unknown.
func (c *calls) write(one *operation, id string, in request) {
	in.guard = one.Args.IfRevision
	attempts := one.attempts()
	in.repeated = attempts > 1
	switch {
	case one.answered():
		out := response{revision: revisionOf(one.Answer.Revision), created: one.Answer.Created}
		if in.repeated {
			out.created = nil // an earlier attempt may have created it
		}
		c.add(one, id, in, out, one.Start, *one.End)
		attempts--
	case one.refused():
		c.refusal(one, id, in)
		attempts--
	}
	c.open(one, id, in, attempts)
}

// open adds attempts of unknown outcome, which stay open to the end of the history.
func (c *calls) open(one *operation, id string, in request, attempts int) {
	for range attempts {
		c.add(one, id, in, response{open: true, revision: unknownRevision}, one.Start, never)
	}
}

// refusal adds the state that a refusal implies; other refusals imply none.
func (c *calls) refusal(one *operation, id string, in request) {
	out := response{code: one.Code, revision: unknownRevision}
	stored := string(one.Answer.StoredRevision)
	switch one.Code {
	case "NOT_FOUND":
		out.nothing = true
	case "ALREADY_EXISTS", "ABORTED":
		out.nothing = stored == "null" && one.Code == "ABORTED"
		if revision, err := strconv.ParseInt(stored, 10, 64); err == nil {
			out.revision = revision
		}
	default:
		return
	}
	c.add(one, id, in, out, one.Start, *one.End)
}

// bulk adds one save for each id of a batch. Of several messages with one id the last counts.
func (c *calls) bulk(one *operation) {
	if one.refused() {
		return
	}
	last := map[string]value{}
	for _, v := range one.Args.Values {
		last[v.ID] = v
	}
	changed := batchChanged(one)
	for _, v := range one.Args.Values {
		if last[v.ID].Digest != v.Digest {
			continue
		}
		in := request{verb: save, digest: v.Digest, label: v.Label, skip: one.Args.Skip}
		attempts := one.attempts()
		if one.answered() {
			c.add(one, v.ID, in, response{changed: changed, revision: unknownRevision}, one.Start, *one.End)
			attempts--
		}
		c.open(one, v.ID, in, attempts)
	}
}

// batchChanged reports whether a batch changed each of its messages or none, if the counts
// of its answer decide that.
func batchChanged(one *operation) *bool {
	count, answer := len(one.Args.Values), one.Answer
	kept := answer.Unchanged
	if one.Args.Skip {
		kept = answer.Skipped
	}
	whole := answer.Saved+kept == count && answer.Rejected == one.Args.Invalid
	if !one.answered() || !whole || one.attempts() > 1 {
		return nil
	}
	all := answer.Saved == count
	if all || answer.Saved == 0 {
		return &all
	}
	return nil
}

// get adds the messages in the answer of a Get or BatchGet, and the absence of the others.
func (c *calls) get(one *operation) {
	missing := one.Answer.Missing
	if one.Kind == "Get" && one.refused() && one.Code == "NOT_FOUND" {
		missing = []string{one.Args.ID}
	} else if !one.answered() {
		return
	}
	c.shown(one)
	for _, id := range missing {
		c.add(one, id, request{verb: absent}, response{revision: unknownRevision}, one.Start, *one.End)
	}
}

// shown adds a read for each message in an answer.
func (c *calls) shown(one *operation) {
	for _, i := range one.Answer.Items {
		in := request{verb: show, digest: i.Digest, label: i.Label}
		c.add(one, i.ID, in, response{revision: i.Revision}, one.Start, *one.End)
	}
}

// register returns the model of the id, with the revisions in its calls.
func (s *subject) register() *register {
	r := &register{initial: []state{s.initial}, revisions: map[string][]int64{}}
	owned := map[int64]bool{}
	for _, call := range s.calls {
		in, out := call.Input.(request), call.Output.(response)
		if out.code == "" && out.revision != unknownRevision {
			r.revisions[in.digest] = include(r.revisions[in.digest], out.revision)
			owned[out.revision] = true
		}
	}
	for _, call := range s.calls {
		var known []int64
		if out := call.Output.(response); out.code != "" {
			known = append(known, out.revision)
		}
		if guard := call.Input.(request).guard; guard != nil {
			known = append(known, *guard)
		}
		for _, revision := range known {
			if revision > 0 && !owned[revision] {
				r.loose = include(r.loose, revision)
			}
		}
	}
	return r
}

// revisionOf returns the revision in an answer, or unknownRevision.
func revisionOf(revision *int64) int64 {
	if revision == nil {
		return unknownRevision
	}
	return *revision
}

// anything returns the model of an id with an unknown initial state.
func (s *subject) anything() *register {
	r := s.register()
	r.initial = []state{nothing(0)}
	for digest := range s.values {
		r.initial = append(r.initial, r.versions(digest, 0)...)
	}
	return r
}

func include(revisions []int64, revision int64) []int64 {
	if slices.Contains(revisions, revision) {
		return revisions
	}
	return append(revisions, revision)
}
