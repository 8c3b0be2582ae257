package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
)

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
	// After is a place (timestamp and id) in a list or search, and an id in an export.
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
}

// UnmarshalJSON reads the array [id, digest, label, revision, created, timestamp].
func (i *item) UnmarshalJSON(data []byte) error {
	var fields []json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return err
	}
	if len(fields) != 6 {
		return fmt.Errorf("an item has %d fields, not 6", len(fields))
	}
	targets := map[int]any{0: &i.ID, 1: &i.Digest, 2: &i.Label, 3: &i.Revision, 5: &i.Timestamp}
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

// validate returns an error if the operation lacks what every such operation has.
func (o *operation) validate() error {
	if o.Kind == "Save" && o.Args.Value == nil {
		return errors.New("a Save without a value")
	}
	if o.End == nil && (o.answered() || o.refused()) {
		return errors.New("an answer without its time")
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
	if err := decoder.Decode(&header); err != nil || header.History != 1 {
		return nil, fmt.Errorf("%s is not a history of format 1", path)
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
