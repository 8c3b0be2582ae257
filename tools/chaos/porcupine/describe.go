package main

import (
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"
)

// line describes a call in one line; times are seconds since the start of the history.
func line(call porcupine.Operation, began int64) string {
	in, out := call.Input.(request), call.Output.(response)
	end := "open"
	if call.Return != never {
		end = seconds(call.Return, began)
	}
	return fmt.Sprintf("    %s to %s  #%d client %d  %s",
		seconds(call.Call, began), end, in.operation, call.ClientId-1, describe(in, out))
}

func seconds(at, began int64) string { return fmt.Sprintf("%.4f s", float64(at-began)/1e9) }

// describe returns a call and its answer.
func describe(in request, out response) string {
	return fmt.Sprintf("%s(%s) -> %s", in.kind, in.asked(), out.text(in))
}

func (in request) asked() string {
	var parts []string
	if in.verb == save {
		parts = append(parts, in.message())
	}
	if in.guard != nil {
		parts = append(parts, fmt.Sprintf("if_revision=%d", *in.guard))
	}
	if in.skip {
		parts = append(parts, "skip")
	}
	return strings.Join(parts, ", ")
}

func (out response) text(in request) string {
	switch {
	case out.open:
		return "outcome unknown"
	case out.nothing:
		return out.code + ", nothing stored"
	case out.code != "" && out.revision == unknownRevision:
		return out.code
	case out.code != "":
		return fmt.Sprintf("%s, stored revision %d", out.code, out.revision)
	}
	switch in.verb {
	case show:
		return fmt.Sprintf("%s at revision %d", in.message(), out.revision)
	case absent:
		return "not found"
	case lack:
		return "not in the answer"
	}
	return out.written()
}

// written describes the answer to a write.
func (out response) written() string {
	parts := []string{"ok"}
	if out.revision != unknownRevision {
		parts = append(parts, fmt.Sprintf("revision %d", out.revision))
	}
	if out.created != nil {
		parts = append(parts, fmt.Sprintf("created %t", *out.created))
	}
	if out.changed != nil {
		parts = append(parts, fmt.Sprintf("changed %t", *out.changed))
	}
	return strings.Join(parts, ", ")
}

// message names the value by its first word and the beginning of its digest.
func (in request) message() string { return strings.TrimSpace(in.label + " " + short(in.digest)) }

func short(digest string) string { return "[" + digest[:min(len(digest), 6)] + "]" }
