package main

// place is the position of a message in a list: its timestamp, then its sequence.
type place struct{ timestamp, sequence int64 }

// page adds what one page of a list or search shows, and the lack of what belongs into it.
func (c *calls) page(one *operation) {
	if !one.answered() {
		return
	}
	c.shown(one)
	covers := c.covered(one)
	if covers == nil {
		return
	}
	shown := ids(one.Answer.Items)
	for id, own := range c.subjects {
		if !shown[id] {
			belongs := func(v value) bool { return asked(one.Args, v) && covers(v) }
			c.lacks(one, own, belongs, one.Start)
		}
	}
}

// lacks adds that an answer contains none of the chosen values of an id, at some moment since
// the given one.
func (c *calls) lacks(one *operation, own *subject, chosen func(value) bool, since int64) {
	among := map[string]bool{}
	for digest, v := range own.values {
		if chosen(v) {
			among[digest] = true
		}
	}
	if len(among) > 0 {
		in := request{verb: lack, among: among}
		c.add(one, own.id, in, response{revision: unknownRevision}, since, *one.End)
	}
}

// covered returns the test for the values that certainly lie on a page, nil if it is not known
// where the page begins and ends.
func (c *calls) covered(one *operation) func(value) bool {
	after, _ := one.Args.afterPlace() // validated
	items, more := one.Answer.Items, one.Answer.More
	if one.Args.Order == "RELEVANCE" && (after != nil || more) || more && len(items) == 0 {
		return nil
	}
	newest := one.Args.Order == "NEWEST"
	return func(v value) bool {
		if after != nil && c.sideOf(v, *after, newest) != behind {
			return false
		}
		if !more {
			return true
		}
		last := items[len(items)-1]
		where := c.sideOf(v, place{last.Timestamp, last.Sequence}, newest)
		return where == before || where == exact
	}
}

// side is where a value lies relative to a place.
type side int

const (
	unclear side = iota // at its timestamp, with a sequence that is not known
	before
	exact
	behind
)

// sideOf compares the place of a value with another place, in the order of a list.
func (c *calls) sideOf(v value, from place, newest bool) side {
	ours, theirs := v.Timestamp, from.timestamp
	if ours == theirs {
		sequence, known := c.sequences.known(v)
		if !known {
			return unclear
		}
		ours, theirs = sequence, from.sequence
	}
	switch {
	case ours == theirs:
		return exact
	case (ours < theirs) == newest:
		return behind
	}
	return before
}

// asked reports whether a value meets the conditions of a list or search.
func asked(args arguments, v value) bool {
	if args.Session == nil && args.Tag == nil && args.Word == nil {
		return false // no condition that this program knows
	}
	if args.Session != nil && (v.Session == nil || *v.Session != *args.Session) {
		return false
	}
	return contains(v.Tags, args.Tag) && contains(v.Words, args.Word)
}

func contains(all []string, wanted *string) bool {
	if wanted == nil {
		return true
	}
	for _, one := range all {
		if one == *wanted {
			return true
		}
	}
	return false
}

// export is what the streams of one export have shown so far.
type export struct {
	began int64 // start of the first stream
	shown map[string]bool
}

// stream adds what one stream of an export shows, and the absence of what the export passes
// without showing it. An export promises only what was there when it began, so an absence can
// be at any time since its first stream.
func (c *calls) stream(one *operation) {
	whole := c.exports[one.Args.Export]
	if whole == nil {
		whole = &export{one.Start, map[string]bool{}}
		c.exports[one.Args.Export] = whole
	}
	if one.End == nil {
		return
	}
	c.shown(one)
	items := one.Answer.Items
	for _, i := range items {
		whole.shown[i.ID] = true
	}
	if !one.answered() && len(items) == 0 {
		return
	}
	for id, own := range c.subjects {
		switch {
		case whole.shown[id]:
		case one.answered():
			c.add(one, id, request{verb: absent}, response{revision: unknownRevision}, whole.began, *one.End)
		default:
			c.lacks(one, own, c.passed(one), whole.began)
		}
	}
}

// passed returns the test for the values that a broken stream would have shown before its last
// message: those whose sequence is known and lies between the ends of the stream.
func (c *calls) passed(one *operation) func(value) bool {
	after, _ := one.Args.afterSequence() // validated
	last := one.Answer.Items[len(one.Answer.Items)-1].Sequence
	return func(v value) bool {
		sequence, known := c.sequences.known(v)
		return known && after < sequence && sequence < last
	}
}

func ids(items []item) map[string]bool {
	all := map[string]bool{}
	for _, one := range items {
		all[one.ID] = true
	}
	return all
}
