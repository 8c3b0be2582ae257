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

// mostShrunk is the number of violating ids of a file whose proof is made short.
const mostShrunk = 10

// mostStates is the number of possible states that an explanation lists.
const mostStates = 3

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
			short := own
			if len(result.Violations) < mostShrunk {
				short = own.shrink()
			}
			found, err := own.explain(short, operations[0].Start, with)
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

// explain describes a violation by the few calls that prove it, and draws all calls if a
// visualisation is wanted.
func (s *subject) explain(few *subject, began int64, with options) (violation, error) {
	found := violation{ID: s.id}
	var text strings.Builder
	text.WriteString("no order of these calls explains their answers")
	if few.anyStart {
		text.WriteString(", whatever was stored before them")
	} else {
		text.WriteString(s.reached(few, with))
	}
	known, hidden := few.relevantCalls()
	for _, call := range known {
		found.Operations = append(found.Operations, call.Input.(request).operation)
		text.WriteString("\n" + line(call, began))
	}
	if hidden > 0 {
		fmt.Fprintf(&text, "\n    other writes, which do not explain it at any time: %d", hidden)
	}
	found.Explanation = text.String()
	if with.html == "" {
		return found, nil
	}
	return found, s.draw(with)
}

// relevantCalls returns the calls of a proof without the open writes whose value no call of
// the proof shows, and how many those are.
func (s *subject) relevantCalls() (known []porcupine.Operation, hidden int) {
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
		known = append(known, call)
	}
	return known, hidden
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
// in a separate row, because a client continues after a call of unknown outcome.
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
func (s *subject) reached(few *subject, with options) string {
	model := s.register().model()
	_, info := porcupine.CheckOperationsVerbose(model, few.calls, with.timeout)
	orders := info.PartialLinearizationsOperations()
	if len(orders) == 0 || len(orders[0]) == 0 {
		return ""
	}
	longest := slices.MaxFunc(orders[0], func(a, b []porcupine.Operation) int {
		return cmp.Compare(len(a), len(b))
	})
	now := model.Init()
	for _, call := range longest {
		_, now = model.Step(now, call.Input, call.Output)
	}
	text := fmt.Sprintf("; the longest order has %d of %d", len(longest), len(few.calls))
	if states := now.([]any); len(states) <= mostStates {
		text += " and ends with " + model.DescribeState(now)
	}
	return text
}
