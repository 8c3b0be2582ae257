package main

import (
	"cmp"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Verdicts on a history.
const (
	linearizable = "linearizable"
	violated     = "violation"
	undecided    = "unknown"
)

// opinion is the result of the check of one file.
type opinion struct {
	File       string      `json:"file"`
	Operations int         `json:"operations"`
	IDs        int         `json:"ids"`
	Calls      int         `json:"calls"` // over all ids
	Seconds    float64     `json:"seconds"`
	Verdict    string      `json:"verdict"`
	Violations []violation `json:"violations"`
	Undecided  []string    `json:"undecided"` // ids whose check timed out
}

// violation is an id whose calls have no order that explains all answers.
type violation struct {
	ID          string `json:"id"`
	Explanation string `json:"explanation"`
	Operations  []int  `json:"operations"`
}

// shrinkTimeout limits each check while a proof is made shorter.
const shrinkTimeout = time.Second

// options of a check.
type options struct {
	timeout time.Duration // for one id
	html    string        // folder for visualisations, "" for none
}

// judgeFile checks one history file.
func judgeFile(path string, with options) (*opinion, error) {
	began := time.Now()
	operations, err := readHistory(path)
	if err != nil {
		return nil, err
	}
	result, err := judge(operations, with)
	if err != nil {
		return nil, err
	}
	result.File, result.Seconds = path, time.Since(began).Seconds()
	return result, nil
}

// judge checks the calls on every id.
func judge(operations []*operation, with options) (*opinion, error) {
	result := &opinion{
		Operations: len(operations), Verdict: linearizable,
		Violations: []violation{}, Undecided: []string{},
	}
	for _, own := range split(operations) {
		result.IDs++
		result.Calls += len(own.calls)
		switch porcupine.CheckOperationsTimeout(own.register().model(), own.calls, with.timeout) {
		case porcupine.Illegal:
			found, err := own.explain(operations, with)
			if err != nil {
				return nil, err
			}
			result.Violations = append(result.Violations, found)
		case porcupine.Unknown:
			result.Undecided = append(result.Undecided, own.id)
		}
	}
	if len(result.Undecided) > 0 {
		result.Verdict = undecided
	}
	if len(result.Violations) > 0 {
		result.Verdict = violated
	}
	return result, nil
}

// explain makes a short proof of a violation, and its visualisation if one is wanted.
func (s *subject) explain(operations []*operation, with options) (violation, error) {
	few := s.shrink(min(with.timeout, shrinkTimeout))
	found := violation{ID: s.id}
	var text strings.Builder
	text.WriteString("no order of these calls explains their answers")
	_, info := porcupine.CheckOperationsVerbose(s.register().model(), few.calls, with.timeout)
	text.WriteString(s.reached(few, info))
	told, hidden := few.worthTelling()
	for _, call := range told {
		found.Operations = append(found.Operations, call.Input.(request).operation)
		text.WriteString("\n" + line(call, operations[0].Start))
	}
	if hidden > 0 {
		fmt.Fprintf(&text, "\n    and %d writes of unknown outcome, which do not explain it", hidden)
	}
	found.Explanation = text.String()
	if with.html == "" {
		return found, nil
	}
	return found, s.draw(with)
}

// worthTelling returns the calls of a proof without the open writes whose value no call of
// the proof shows, and how many those are.
func (s *subject) worthTelling() (told []porcupine.Operation, hidden int) {
	shown := map[string]bool{}
	for _, call := range s.calls {
		if in := call.Input.(request); in.verb == show {
			shown[in.digest] = true
		}
	}
	for _, call := range s.calls {
		in := call.Input.(request)
		if call.Output.(response).open && !(in.verb == save && shown[in.digest]) {
			hidden++
			continue
		}
		told = append(told, call)
	}
	return told, hidden
}

// shrink returns the subject with fewer calls that have no order either: first only what
// began before the earliest impossible answer, then without the calls that are not needed.
func (s *subject) shrink(timeout time.Duration) *subject {
	wrong := func(calls []porcupine.Operation) bool {
		// The revisions are those of all calls: fewer would allow less than they should.
		return porcupine.CheckOperationsTimeout(s.register().model(), calls, timeout) == porcupine.Illegal
	}
	ends := slices.Clone(s.calls)
	slices.SortFunc(ends, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	low, high := 0, len(ends)-1
	for low < high {
		middle := (low + high) / 2
		if wrong(until(s.calls, ends[middle].Return)) {
			high = middle
		} else {
			low = middle + 1
		}
	}
	few := *s
	if few.calls = until(s.calls, ends[high].Return); !wrong(few.calls) {
		few.calls = s.calls // a check timed out on the way
	}
	for index := len(few.calls) - 1; index >= 0; index-- {
		if rest := without(few.calls, index); wrong(rest) {
			few.calls = rest
		}
	}
	return &few
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
			call.Output, call.Return = response{open: true}, never
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
	rest[index].Output, rest[index].Return = response{open: true}, never
	return rest
}

// writes tells whether a call can change what is stored.
func writes(call porcupine.Operation) bool {
	verb := call.Input.(request).verb
	return (verb == save || verb == remove) && call.Output.(response).code == ""
}

// draw writes Porcupine's visualisation of all calls on the id.
func (s *subject) draw(with options) error {
	model, calls := s.register().model(), s.drawable()
	_, info := porcupine.CheckOperationsVerbose(model, calls, with.timeout)
	if err := os.MkdirAll(with.html, 0o755); err != nil {
		return err
	}
	return porcupine.VisualizePath(model, info, filepath.Join(with.html, url.PathEscape(s.id)+".html"))
}

// drawable returns the calls with open ends just after the last known one, and each open call
// in a row of its own: a client goes on after a call of unknown outcome.
func (s *subject) drawable() []porcupine.Operation {
	calls := slices.Clone(s.calls)
	last, clients := int64(0), 0
	for _, call := range calls {
		clients = max(clients, call.ClientId+1)
		last = max(last, call.Call)
		if call.Return != never {
			last = max(last, call.Return)
		}
	}
	for index := range calls {
		if calls[index].Return == never {
			calls[index].Return = last + 1
			calls[index].ClientId = clients
			clients++
		}
	}
	return calls
}

// reached describes the state after the longest order of some calls that Porcupine found.
func (s *subject) reached(few *subject, info porcupine.LinearizationInfo) string {
	orders := info.PartialLinearizationsOperations()
	if len(orders) == 0 || len(orders[0]) == 0 {
		return ""
	}
	longest := slices.MaxFunc(orders[0], func(a, b []porcupine.Operation) int {
		return cmp.Compare(len(a), len(b))
	})
	model := s.register().model()
	now := model.Init()
	for _, call := range longest {
		_, now = model.Step(now, call.Input, call.Output)
	}
	return fmt.Sprintf("; the longest order has %d of %d and ends with: %s",
		len(longest), len(few.calls), model.DescribeState(now))
}
