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

func sent(id, name string) string {
	return fmt.Sprintf(`{"id":"%s","digest":"%s","label":"%s","timestamp":0,"session":"s",`+
		`"tags":["t"],"words":["w-%s"]}`, id, name, name, name)
}

func shown(id, name string, revision int) string {
	return fmt.Sprintf(`["%s","%s","%s",%d,1,0]`, id, name, name, revision)
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

func (s *story) write(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "history.jsonl")
	text := "{\"history\":1}\n" + strings.Join(s.lines, "\n") + "\n" + `{"mark":"kill","at":5,"facts":{}}`
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
			s.add(0, "Export", 20, 30, `{"export":1,"after":""}`, emptyPage)
		},
		"message that a broken export has passed": func(s *story) {
			s.save(0, 10, "a", 1, "")
			s.add(0, "Save", 0, 10, fmt.Sprintf(`{"value":%s}`, sent("z", "b")),
				`"outcome":"ok","answer":{"revision":2}`)
			s.add(0, "Export", 20, 30, `{"export":1,"after":""}`,
				`"outcome":"unknown","answer":{"items":[`+shown("z", "b", 2)+`]}`)
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
