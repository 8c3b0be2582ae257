package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func lostWrite() *story {
	s := &story{}
	for at := 0; at < 100; at += 20 {
		s.save(at, at+10, "a", 1, "")
		s.get(at, at+10, "a", 1)
	}
	s.save(100, 110, "b", 2, "")
	s.lostSave(112, 114, "c")
	s.miss(120, 130)
	return s
}

// The proof is the last save and the read after it.
func TestExplanationNamesTheFewCallsThatProveIt(t *testing.T) {
	var out strings.Builder
	err := run([]string{lostWrite().write(t)}, &out, io.Discard)
	if !errors.Is(err, errViolation) {
		t.Fatalf("error %v", err)
	}
	for _, wanted := range []string{
		"13 operations, 1 ids", "violation at id m", "Save(b [b])", "Get() -> not found", "whatever was stored before",
		"other writes, which do not explain it at any time: 1",
	} {
		if !strings.Contains(out.String(), wanted) {
			t.Errorf("%q is missing in:\n%s", wanted, out.String())
		}
	}
	if lines := strings.Count(out.String(), "\n"); lines != 5 {
		t.Errorf("%d lines:\n%s", lines, out.String())
	}
}

func TestJSONHasOneObjectForEachFile(t *testing.T) {
	right := &story{}
	right.save(0, 10, "a", 1, "")
	var out strings.Builder
	err := run([]string{"-json", right.write(t), lostWrite().write(t)}, &out, io.Discard)
	if !errors.Is(err, errViolation) {
		t.Fatalf("error %v", err)
	}
	decoder := json.NewDecoder(strings.NewReader(out.String()))
	for _, verdict := range []string{linearizable, violated} {
		var one opinion
		if err := decoder.Decode(&one); err != nil || one.Verdict != verdict {
			t.Errorf("%+v, error %v; want %s", one, err, verdict)
		}
	}
}

func TestVisualisationIsWrittenForAViolatingID(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "html")
	err := run([]string{"-html", folder, lostWrite().write(t)}, io.Discard, io.Discard)
	if !errors.Is(err, errViolation) {
		t.Fatalf("error %v", err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "m.html"))
	if err != nil || !strings.Contains(string(text), "<html") {
		t.Errorf("no visualisation: %v", err)
	}
}

func TestTimeOutIsUnknown(t *testing.T) {
	s := &story{}
	for at := range 14 {
		s.lostSave(at, at+1, string(rune('a'+at)))
	}
	for at := range 40 {
		s.get(100+at*10, 200+at*10, string(rune('a'+at%14)), 100-at)
	}
	result, err := judgeFile(s.write(t), options{timeout: 1})
	if err != nil || result.Verdict != undecided || len(result.Undecided) != 1 {
		t.Errorf("%+v, error %v", result, err)
	}
}

func TestOtherFilesAreRefused(t *testing.T) {
	files := map[string]string{
		`{"op":1}`: "is not a history of format 2",
		`{"history":2} {"op":0,"kind":"Save","outcome":"open"}`:             "a Save without a value",
		`{"history":2} {"op":0,"kind":"Get","outcome":"ok"}`:                "an answer without its time",
		`{"history":2} {"op":0,"kind":"Get","answer":{"items":[["m",""]]}}`: "an item has 2 fields",
		`{"history":1} {"op":0,"kind":"Get"}`:                               "is not a history of format 2",
		`{"history":2} {"op":0,"kind":"List","args":{"after":[1,"m"]}}`:     `operation 0: after [1,"m"]: `,
		`{"history":2} {"op":0,"kind":"Search","args":{"after":[1]}}`:       "a place has 1 fields, not 2",
		`{"history":2} {"op":0,"kind":"Export","args":{"after":"m"}}`:       `operation 0: after "m": `,
	}
	for text, wanted := range files {
		path := filepath.Join(t.TempDir(), "other.jsonl")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run([]string{path}, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("error %v, not %q", err, wanted)
		}
	}
	if err := run(nil, io.Discard, io.Discard); err == nil {
		t.Error("no file is no error")
	}
}
