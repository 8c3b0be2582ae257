package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// story is a history file in the making; times are arbitrary units.
type story struct {
	lines []string
}

func (s *story) add(client int, kind string, start, end int, args, rest string) {
	s.lines = append(s.lines, fmt.Sprintf(
		`{"op":%d,"client":%d,"kind":"%s","args":%s,"start":%d,"end":%d,%s}`,
		len(s.lines), client, kind, args, start, end, rest))
}

func sent(id, name string) string { return sentAt(0, id, name) }

func sentAt(timestamp int, id, name string) string {
	return fmt.Sprintf(`{"id":"%s","digest":"%s","label":"%s","timestamp":%d,"session":"s",`+
		`"tags":["t"],"words":["w-%s"]}`, id, name, name, timestamp, name)
}

func shown(id, name string, revision int) string { return shownAt(0, 0, id, name, revision) }

func shownAt(timestamp, sequence int, id, name string, revision int) string {
	return fmt.Sprintf(`["%s","%s","%s",%d,1,%d,%d]`, id, name, name, revision, timestamp, sequence)
}

func saveOf(name, more string) string { return fmt.Sprintf(`{"value":%s%s}`, sent("m", name), more) }

func (s *story) save(start, end int, name string, revision int, more string) {
	answer := fmt.Sprintf(`"outcome":"ok","answer":{"revision":%d}`, revision)
	s.add(0, "Save", start, end, saveOf(name, more), answer)
}

func (s *story) lostSave(start, end int, name string) {
	s.add(1, "Save", start, end, saveOf(name, ""), `"outcome":"unknown","code":"UNAVAILABLE"`)
}

func (s *story) get(start, end int, name string, revision int) {
	answer := fmt.Sprintf(`"outcome":"ok","answer":{"items":[%s]}`, shown("m", name, revision))
	s.add(2, "Get", start, end, `{"id":"m"}`, answer)
}

func (s *story) miss(start, end int) {
	s.add(2, "Get", start, end, `{"id":"m"}`, `"outcome":"refused","code":"NOT_FOUND"`)
}

func (s *story) remove(start, end int, outcome, more string) {
	s.add(3, "Delete", start, end, `{"id":"m"`+more+`}`, `"outcome":"`+outcome+`"`)
}

func (s *story) refused(kind string, start, end int, args, code, stored string) {
	rest := fmt.Sprintf(`"outcome":"refused","code":"%s","answer":{"stored_revision":%s}`, code, stored)
	s.add(4, kind, start, end, args, rest)
}

// stored adds a save of value "a" as m before the moment 10, and reads that show m with sequences.
func (s *story) stored(more string, sequences ...int) {
	s.save(0, 10, "a", 1, more)
	for _, sequence := range sequences {
		item := shownAt(0, sequence, "m", "a", 1)
		s.add(2, "Get", 12, 14, `{"id":"m"}`, `"outcome":"ok","answer":{"items":[`+item+`]}`)
	}
}

// other adds a save of another message before the moment 10 and returns its item.
func (s *story) other(timestamp, sequence int) string {
	id := fmt.Sprintf("z%d", sequence)
	s.add(0, "Save", 0, 10, fmt.Sprintf(`{"value":%s}`, sentAt(timestamp, id, id)),
		fmt.Sprintf(`"outcome":"ok","answer":{"revision":%d}`, 10+sequence))
	return shownAt(timestamp, sequence, id, id, 10+sequence)
}

// page adds a page that is not the last one.
func (s *story) page(order, after string, items ...string) {
	s.add(0, "List", 20, 30, fmt.Sprintf(`{"session":"s","order":"%s","after":%s}`, order, after),
		`"outcome":"ok","answer":{"items":[`+strings.Join(items, ",")+`],"more":true}`)
}

// stream adds a stream of the only export.
func (s *story) stream(start, end int, outcome string, after int, items ...string) {
	s.add(0, "Export", start, end, fmt.Sprintf(`{"export":1,"after":%d}`, after),
		`"outcome":"`+outcome+`","answer":{"items":[`+strings.Join(items, ",")+`]}`)
}

func (s *story) write(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "history.jsonl")
	text := "{\"history\":2}\n" + strings.Join(s.lines, "\n") + "\n" + `{"mark":"kill","at":5,"facts":{}}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// wrong returns the violating ids of a story.
func wrong(t *testing.T, tell func(*story)) []string {
	t.Helper()
	s := &story{}
	tell(s)
	result, err := judgeFile(s.write(t), options{timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, one := range result.Violations {
		found = append(found, one.ID)
	}
	return found
}

func TestLinearizableHistoriesAreAccepted(t *testing.T) {
	cases := map[string]func(*story){
		"overlapping calls take effect in any order": func(s *story) {
			s.save(0, 100, "a", 1, "")
			s.get(10, 20, "a", 1)
			s.remove(30, 60, "ok", "")
			s.miss(40, 50)
		},
		"a write of unknown outcome never takes effect": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.lostSave(20, 30, "b")
			s.get(40, 50, "a", 1)
		},
		"a write of unknown outcome takes effect late": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.lostSave(20, 30, "b")
			s.get(40, 50, "a", 1)
			s.get(60, 70, "b", 2)
		},
		"a repeated save writes twice": func(s *story) {
			s.save(0, 10, "a", 1, `,"tries":2`)
			s.save(20, 30, "b", 2, "")
			s.get(40, 50, "a", 3)
		},
		"a repeated guarded save finds an equal message": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.save(20, 30, "a", 1, `,"if_revision":0,"tries":2`)
		},
		"a repeated delete finds nothing": func(s *story) {
			s.miss(0, 10)
			s.remove(20, 30, "ok", `,"tries":2`)
		},
		"an equal save keeps the revision": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.save(20, 30, "a", 1, "")
			s.get(40, 50, "a", 1)
		},
		"a guard matches a revision that a batch did not tell": func(s *story) {
			s.add(0, "BulkSave", 0, 10, `{"values":[`+sent("m", "a")+`]}`,
				`"outcome":"ok","answer":{"saved":1,"unchanged":0,"skipped":0,"rejected":0}`)
			s.save(20, 30, "b", 8, `,"if_revision":5`)
		},
		"a skipped batch keeps the message": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.add(0, "BulkSave", 20, 30, `{"skip":true,"values":[`+sent("m", "b")+`]}`,
				`"outcome":"ok","answer":{"saved":0,"unchanged":0,"skipped":1,"rejected":0}`)
			s.get(40, 50, "a", 1)
		},
		"a baseline is there from the beginning": func(s *story) {
			s.add(-1, "Baseline", 0, 10, `{}`, `"outcome":"ok","answer":{"values":[`+sent("m", "a")+
				`],"items":[`+shown("m", "a", 7)+`]}`)
			s.get(20, 30, "a", 7)
		},
		"a guard is refused for another revision": func(s *story) {
			s.save(0, 10, "a", 3, "")
			s.refused("Save", 20, 30, saveOf("b", `,"if_revision":2`), "ABORTED", "3")
			s.refused("Save", 20, 30, saveOf("b", `,"if_revision":0`), "ALREADY_EXISTS", "3")
			s.get(40, 50, "a", 3)
		},
		"a message without an answer is refused for certain": func(s *story) {
			s.add(0, "Save", 0, 10, saveOf("a", ""), `"outcome":"refused","code":"UNAVAILABLE"`)
			s.miss(20, 30)
		},
	}
	for name, tell := range cases {
		t.Run(name, func(t *testing.T) {
			if found := wrong(t, tell); found != nil {
				t.Errorf("violations at %v", found)
			}
		})
	}
}

// Each history lacks m in an answer that need not contain it.
func TestMessageThatNeedNotBeInAnAnswerIsAccepted(t *testing.T) {
	cases := map[string]func(*story){
		"sequence after the last one of an oldest-first page": func(s *story) {
			s.stored("", 4)
			s.page("OLDEST", "[0,1]", s.other(0, 3))
		},
		"sequence before the first one of an oldest-first page": func(s *story) {
			s.stored("", 1)
			s.page("OLDEST", "[0,2]", s.other(0, 3))
		},
		"sequence before the last one of a newest-first page": func(s *story) {
			s.stored("", 1)
			s.page("NEWEST", "[0,4]", s.other(0, 3))
		},
		"sequence at which the page before ended": func(s *story) {
			s.stored("", 2)
			s.page("OLDEST", "[0,2]", s.other(0, 3))
		},
		"unknown sequence at the time of the first message": func(s *story) {
			s.stored("")
			s.page("OLDEST", "[0,1]", s.other(5, 3))
		},
		"unknown sequence at the time of the last message": func(s *story) {
			s.stored("")
			s.page("OLDEST", "null", s.other(0, 3))
		},
		"sequence of a value that was sent twice": func(s *story) {
			s.stored(`,"tries":2`, 2)
			s.page("OLDEST", "[0,1]", s.other(0, 3))
		},
		"value that was shown with two sequences": func(s *story) {
			s.stored("", 2, 3, 2)
			z := s.other(0, 4)
			s.page("OLDEST", "[0,1]", z)
			s.stream(20, 30, "unknown", 0, z)
		},
		"value that was shown without a sequence": func(s *story) {
			s.stored("", 0, 2)
			s.page("OLDEST", "[0,1]", s.other(0, 3))
		},
		"sequence after the last one of a broken export": func(s *story) {
			s.stored("", 4)
			s.stream(20, 30, "unknown", 0, s.other(0, 3))
		},
		"sequence before the first one of a broken export": func(s *story) {
			s.stored("", 1)
			s.stream(20, 30, "unknown", 1, s.other(0, 3))
		},
		"unknown sequence in a broken export": func(s *story) {
			s.stored("")
			s.stream(20, 30, "unknown", 0, s.other(0, 3))
		},
		"broken export without a message": func(s *story) {
			s.stored("", 1)
			s.stream(20, 30, "unknown", 0)
		},
		"message that an earlier stream of the export has shown": func(s *story) {
			s.stored("", 1)
			s.stream(20, 30, "unknown", 0, shownAt(0, 1, "m", "a", 1))
			s.stream(40, 50, "unknown", 0, s.other(0, 3))
			s.stream(60, 70, "ok", 3)
			s.get(80, 90, "a", 1)
		},
		"message that was stored between two streams": func(s *story) {
			z, y := s.other(0, 3), s.other(0, 5)
			s.stream(20, 30, "unknown", 0, z)
			s.save(32, 34, "a", 20, "")
			item := shownAt(0, 4, "m", "a", 20)
			s.add(2, "Get", 36, 38, `{"id":"m"}`, `"outcome":"ok","answer":{"items":[`+item+`]}`)
			s.stream(40, 50, "unknown", 3, y)
			s.stream(60, 70, "ok", 5)
		},
		"message that was deleted after the export began": func(s *story) {
			s.stored("", 4)
			s.stream(20, 30, "unknown", 0, s.other(0, 3))
			s.remove(32, 34, "ok", "")
			s.stream(40, 50, "ok", 3)
		},
	}
	for name, tell := range cases {
		t.Run(name, func(t *testing.T) {
			if found := wrong(t, tell); found != nil {
				t.Errorf("violations at %v", found)
			}
		})
	}
}

func TestViolationsAreFound(t *testing.T) {
	cases := map[string]func(*story){
		"lost write": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.miss(20, 30)
		},
		"stale read": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.save(20, 30, "b", 2, "")
			s.get(40, 50, "a", 1)
		},
		"effect of an unknown write that is gone again": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.lostSave(20, 30, "b")
			s.get(40, 50, "b", 2)
			s.get(60, 70, "a", 1)
		},
		"resurrected delete": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.remove(20, 30, "ok", "")
			s.get(40, 50, "a", 1)
		},
		"delete of nothing": func(s *story) { s.remove(0, 10, "ok", "") },
		"value that no client wrote": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.get(0, 10, "b", 1)
		},
		"value shown before it was sent": func(s *story) {
			s.get(0, 10, "a", 1)
			s.save(20, 30, "a", 1, "")
		},
		"two saves accepted with one guard": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.save(20, 40, "b", 2, `,"if_revision":1`)
			s.save(20, 40, "c", 3, `,"if_revision":1`)
		},
		"a repeated guarded save replaces another message": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.save(20, 30, "b", 2, `,"if_revision":0,"tries":2`)
		},
		"refusal of a guard that matches": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.refused("Save", 20, 30, saveOf("b", `,"if_revision":1`), "ABORTED", "1")
		},
		"refusal because of nothing while something is stored": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.refused("Delete", 20, 30, `{"id":"m","if_revision":4}`, "ABORTED", "null")
		},
		"one revision with two values": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.get(0, 40, "a", 1)
			s.lostSave(20, 30, "b")
			s.get(50, 60, "b", 1)
		},
		"revision that goes back": func(s *story) {
			s.save(0, 10, "a", 5, "")
			s.save(20, 30, "b", 4, "")
		},
		"revision that goes back to zero": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.save(20, 30, "b", 0, "")
		},
		"revision that goes back over a deletion": func(s *story) {
			s.save(0, 10, "a", 5, "")
			s.remove(20, 30, "ok", "")
			s.save(40, 50, "b", 5, "")
		},
		"batch that claims a change without one": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.add(0, "BulkSave", 20, 30, `{"values":[`+sent("m", "a")+`]}`,
				`"outcome":"ok","answer":{"saved":1,"unchanged":0,"skipped":0,"rejected":0}`)
		},
		"message that a list lacks": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.add(0, "List", 20, 30, `{"session":"s","order":"OLDEST"}`, emptyPage)
		},
		"message that a search lacks": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.add(0, "Search", 20, 30, `{"word":"w-a","tag":"t","order":"RELEVANCE"}`, emptyPage)
		},
		"message that an export lacks": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.stream(20, 30, "ok", 0)
		},
		"message that a broken export has passed": func(s *story) {
			s.stored("", 2)
			s.stream(20, 30, "unknown", 1, s.other(0, 3))
		},
		"message that a resumed export lacks": func(s *story) {
			s.stored("")
			s.stream(20, 30, "unknown", 0, s.other(0, 3))
			s.stream(40, 50, "ok", 3)
		},
		"message of an equal time that an oldest-first page has passed": func(s *story) {
			s.stored("", 2)
			s.page("OLDEST", "[0,1]", s.other(0, 3))
		},
		"message of an equal time that a newest-first page has passed": func(s *story) {
			s.stored("", 2)
			s.page("NEWEST", "[0,3]", s.other(0, 1))
		},
		"message of unknown sequence where the times decide": func(s *story) {
			s.stored("")
			s.page("NEWEST", "[5,9]", s.other(-5, 3))
		},
		"message of unknown sequence that is not on the only page": func(s *story) {
			s.stored("")
			s.add(0, "List", 20, 30, `{"session":"s","order":"OLDEST","after":null}`, emptyPage)
		},
	}
	for name, tell := range cases {
		t.Run(name, func(t *testing.T) {
			if found := wrong(t, tell); !slices.Equal(found, []string{"m"}) {
				t.Errorf("violations at %v, not at m", found)
			}
		})
	}
}

const emptyPage = `"outcome":"ok","answer":{"items":[],"more":false}`
