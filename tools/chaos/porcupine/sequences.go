package main

// content is a value under an id, however often it is written.
type content struct{ id, digest string }

// sequences holds what a history tells about the sequence of each value. The store assigns it
// when it stores an id that was absent, and a replacement keeps it.
type sequences map[content]*origin

// origin is how often a value was sent, and the sequence that answers show with it.
type origin struct {
	attempts int
	shown    int64 // 0 if none is shown
	unclear  bool  // answers differ, or one shows no sequence
}

func (s sequences) of(id, digest string) *origin {
	key := content{id, digest}
	if s[key] == nil {
		s[key] = &origin{}
	}
	return s[key]
}

// learn records the values that an operation sends and those that its answer shows.
func (s sequences) learn(one *operation) {
	for _, v := range one.written() {
		s.of(v.ID, v.Digest).attempts += one.attempts()
	}
	for _, i := range one.Answer.Items {
		from := s.of(i.ID, i.Digest)
		from.unclear = from.unclear || i.Sequence == 0 || from.shown != 0 && from.shown != i.Sequence
		from.shown = i.Sequence
	}
}

// known returns the only sequence that a value can have had, false if there is none. A value
// that was sent twice can have been stored again after a deletion, under another sequence.
func (s sequences) known(v value) (int64, bool) {
	from := s[content{v.ID, v.Digest}]
	if from == nil || from.attempts != 1 || from.unclear || from.shown == 0 {
		return 0, false
	}
	return from.shown, true
}
