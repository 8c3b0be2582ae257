package main

import "encoding/json"

// place is the position of a message in a list: its timestamp, then its id.
type place struct {
	timestamp int64
	id        string
}

func (p place) before(other place) bool {
	return p.timestamp < other.timestamp || p.timestamp == other.timestamp && p.id < other.id
}

func placeOf(i item) place { return place{i.Timestamp, i.ID} }

// page adds what one page of a list or search shows, and the lack of what belongs into it.
func (c *calls) page(one *operation) {
	if !one.answered() {
		return
	}
	c.shown(one)
	covers := covered(one)
	if covers == nil {
		return
	}
	shown := ids(one.Answer.Items)
	for id, own := range c.subjects {
		if shown[id] {
			continue
		}
		among := map[string]bool{}
		for digest, v := range own.values {
			if asked(one.Args, v) && covers(place{v.Timestamp, id}) {
				among[digest] = true
			}
		}
		if len(among) > 0 {
			in := request{verb: lack, among: among}
			c.add(one, id, in, response{revision: unknownRevision}, one.Start, *one.End)
		}
	}
}

// covered returns the test for the places that a page covers, nil if they are not known.
func covered(one *operation) func(place) bool {
	after, items := placeAfter(one.Args.After), one.Answer.Items
	more := one.Answer.More
	if one.Args.Order == "RELEVANCE" && (after != nil || more) || more && len(items) == 0 {
		return nil
	}
	newest := one.Args.Order == "NEWEST"
	follows := func(a, b place) bool { return newest && a.before(b) || !newest && b.before(a) }
	return func(p place) bool {
		if after != nil && !follows(p, *after) {
			return false
		}
		return !more || !follows(p, placeOf(items[len(items)-1]))
	}
}

func placeAfter(raw json.RawMessage) *place {
	var fields []json.RawMessage
	var p place
	if json.Unmarshal(raw, &fields) != nil || len(fields) != 2 {
		return nil
	}
	if json.Unmarshal(fields[0], &p.timestamp) != nil || json.Unmarshal(fields[1], &p.id) != nil {
		return nil
	}
	return &p
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

// export adds what one stream of an export shows, and the absence of the ids that it passes
// without showing them. A resumed export promises only what was there when it began, so an
// absence can be at any time since its first stream.
func (c *calls) export(one *operation) {
	began, known := c.exports[one.Args.Export]
	if !known {
		began = one.Start
		c.exports[one.Args.Export] = began
	}
	if one.End == nil {
		return
	}
	c.shown(one)
	items := one.Answer.Items
	if !one.answered() && len(items) == 0 {
		return
	}
	var after string
	_ = json.Unmarshal(one.Args.After, &after) // null in the first stream
	shown := ids(items)
	for id := range c.subjects {
		passed := one.answered() || id < items[len(items)-1].ID
		if id > after && passed && !shown[id] {
			c.add(one, id, request{verb: absent}, response{revision: unknownRevision}, began, *one.End)
		}
	}
}

func ids(items []item) map[string]bool {
	all := map[string]bool{}
	for _, one := range items {
		all[one.ID] = true
	}
	return all
}
