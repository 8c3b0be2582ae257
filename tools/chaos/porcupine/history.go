package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
)

// format is the format of a history that this program reads (tools/chaos/history.py).
const format = 2

// Outcomes of an operation, as docs/explanation/history-checker.md defines them.
const (
	outcomeOK      = "ok"
	outcomeRefused = "refused"
)

// never is the end of an operation that can take effect at any time after its start.
const never = math.MaxInt64

// operation is one attempt of one call, as tools/chaos/history.py writes it.
type operation struct {
	Number  *int      `json:"op"`
	Client  int       `json:"client"`
	Kind    string    `json:"kind"`
	Args    arguments `json:"args"`
	Start   int64     `json:"start"`
	End     *int64    `json:"end"`
	Outcome string    `json:"outcome"`
	Answer  reply     `json:"answer"`
	Code    string    `json:"code"`
}

// arguments are the arguments of all kinds of operations.
type arguments struct {
	ID         string   `json:"id"`
	IDs        []string `json:"ids"`
	Value      *value   `json:"value"`
	Values     []value  `json:"values"`
	IfRevision *int64   `json:"if_revision"`
	Tries      int      `json:"tries"`
	Skip       bool     `json:"skip"`
	Invalid    int      `json:"invalid"`
	Session    *string  `json:"session"`
	Tag        *string  `json:"tag"`
	Word       *string  `json:"word"`
	Order      string   `json:"order"`
	Export     int      `json:"export"`
	// After is a place in a list or search, and a sequence in an export.
	After json.RawMessage `json:"after"`
}

// reply holds the answers of all kinds of operations.
type reply struct {
	Revision       *int64          `json:"revision"`
	Created        *bool           `json:"created"`
	StoredRevision json.RawMessage `json:"stored_revision"`
	Values         []value         `json:"values"`
	Items          []item          `json:"items"`
	Missing        []string        `json:"missing"`
	Saved          int             `json:"saved"`
	Unchanged      int             `json:"unchanged"`
	Skipped        int             `json:"skipped"`
	Rejected       int             `json:"rejected"`
	More           bool            `json:"more"`
}

// value is a message as a client sends it.
type value struct {
	ID        string   `json:"id"`
	Digest    string   `json:"digest"`
	Label     string   `json:"label"`
	Timestamp int64    `json:"timestamp"`
	Session   *string  `json:"session"`
	Tags      []string `json:"tags"`
	Words     []string `json:"words"`
}

// item is a message as an answer shows it.
type item struct {
	ID        string
	Digest    string
	Label     string
	Revision  int64
	Timestamp int64
	Sequence  int64 // 0 if the answer shows none
}

// UnmarshalJSON reads the array [id, digest, label, revision, created, timestamp, sequence].
func (i *item) UnmarshalJSON(data []byte) error {
	var fields []json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return err
	}
	if len(fields) != 7 {
		return fmt.Errorf("an item has %d fields, not 7", len(fields))
	}
	targets := map[int]any{
		0: &i.ID, 1: &i.Digest, 2: &i.Label, 3: &i.Revision, 5: &i.Timestamp, 6: &i.Sequence,
	}
	for index, target := range targets {
		if err := json.Unmarshal(fields[index], target); err != nil {
			return err
		}
	}
	return nil
}

// answered reports whether the operation has an answer.
func (o *operation) answered() bool { return o.Outcome == outcomeOK }

// refused reports whether the operation had no effect, for certain.
func (o *operation) refused() bool { return o.Outcome == outcomeRefused }

// attempts returns how often the client sent the call.
func (o *operation) attempts() int { return max(o.Args.Tries, 1) }

// written returns the values that the operation writes, or that were there before all others.
func (o *operation) written() []value {
	all := slices.Concat(o.Args.Values, o.Answer.Values)
	if o.Args.Value != nil {
		all = append(all, *o.Args.Value)
	}
	return all
}

// afterPlace returns the place that a page of a list or search follows, nil for the first page.
func (a arguments) afterPlace() (*place, error) {
	var fields []int64
	if len(a.After) > 0 {
		if err := json.Unmarshal(a.After, &fields); err != nil {
			return nil, err
		}
	}
	switch len(fields) {
	case 0:
		return nil, nil
	case 2:
		return &place{fields[0], fields[1]}, nil
	}
	return nil, fmt.Errorf("a place has %d fields, not 2", len(fields))
}

// afterSequence returns the sequence that a stream of an export follows, 0 for the first one.
func (a arguments) afterSequence() (int64, error) {
	var sequence int64
	if len(a.After) == 0 {
		return 0, nil
	}
	err := json.Unmarshal(a.After, &sequence)
	return sequence, err
}

// validate returns an error if the operation lacks what every such operation has.
func (o *operation) validate() error {
	if o.Kind == "Save" && o.Args.Value == nil {
		return errors.New("a Save without a value")
	}
	if o.End == nil && (o.answered() || o.refused()) {
		return errors.New("an answer without its time")
	}
	var err error
	switch o.Kind {
	case "List", "Search":
		_, err = o.Args.afterPlace()
	case "Export":
		_, err = o.Args.afterSequence()
	}
	if err != nil {
		return fmt.Errorf("after %s: %w", o.Args.After, err)
	}
	return nil
}

// readHistory reads the operations of a history file; marks are skipped.
func readHistory(path string) ([]*operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := bufio.NewReaderSize(file, 1<<20)
	decoder := json.NewDecoder(lines)
	var header struct {
		History int `json:"history"`
	}
	if err := decoder.Decode(&header); err != nil || header.History != format {
		return nil, fmt.Errorf("%s is not a history of format %d", path, format)
	}
	var operations []*operation
	for decoder.More() {
		var one operation
		if err := decoder.Decode(&one); err != nil {
			return nil, fmt.Errorf("%s, record %d: %w", path, len(operations)+1, err)
		}
		if one.Number == nil {
			continue
		}
		if err := one.validate(); err != nil {
			return nil, fmt.Errorf("%s, operation %d: %w", path, *one.Number, err)
		}
		operations = append(operations, &one)
	}
	return operations, nil
}
