// Command porcupinecheck checks histories of the chaos campaign for linearizability with
// Porcupine, independently of the checker in Python. The README of this folder states what
// it checks.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// errViolation is returned if a history is not linearizable.
var errViolation = errors.New("violation")

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errViolation):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(2)
	}
}

// run checks the files that the arguments name.
func run(arguments []string, out, complaints io.Writer) error {
	flags := flag.NewFlagSet("porcupinecheck", flag.ContinueOnError)
	flags.SetOutput(complaints)
	timeout := flags.Duration("timeout", 20*time.Second, "time limit for one id")
	asJSON := flags.Bool("json", false, "print one JSON object for each file")
	html := flags.String("html", "", "write a visualisation of each violating id into this `folder`")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("name at least one history file")
	}
	wrong := false
	for number, path := range flags.Args() {
		with := options{timeout: *timeout, html: htmlFolder(*html, flags.NArg(), number, path)}
		result, err := judgeFile(path, with)
		if err != nil {
			return err
		}
		wrong = wrong || result.Verdict == violated
		if err := tell(out, result, *asJSON); err != nil {
			return err
		}
	}
	if wrong {
		return errViolation
	}
	return nil
}

// htmlFolder returns the folder for visualisations of one of several files.
func htmlFolder(folder string, files, number int, path string) string {
	if folder == "" || files == 1 {
		return folder
	}
	return filepath.Join(folder, fmt.Sprintf("%d-%s", number+1, filepath.Base(filepath.Dir(path))))
}

func tell(out io.Writer, result *opinion, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(result)
	}
	_, err := fmt.Fprint(out, result.text())
	return err
}

// text returns a line for the file, and the explanation of each violation.
func (o *opinion) text() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %d operations, %d ids, %d calls on them, %.1f s: %s\n",
		o.File, o.Operations, o.IDs, o.Calls, o.Seconds, o.Verdict)
	for _, one := range o.Violations {
		fmt.Fprintf(&text, "  violation at id %s: %s\n", one.ID, one.Explanation)
	}
	for _, id := range o.Undecided {
		fmt.Fprintf(&text, "  unknown, timed out: id %s\n", id)
	}
	return text.String()
}
