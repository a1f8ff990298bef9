package natty

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
)

// maxNameLen is the server's limit on the length of a stream's or consumer's name
// (JSMaxNameLen in nats-server).
const maxNameLen = 255

// maxSubjectLen keeps a subject with what else is on its protocol line under the 4096 bytes that servers accept by
// default (max_control_line). Over that they drop the connection, and would again at every retry.
const maxSubjectLen = 4000

// validSubject says what is wrong with a subject, or "".
func validSubject(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > maxSubjectLen:
		return fmt.Sprintf("is longer than %d bytes", maxSubjectLen)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }); i >= 0 {
		return "holds a space or a control character"
	}
	for token := range strings.SplitSeq(s, ".") {
		if token == "" {
			return "has an empty token (a dot at an end, or two in a row)"
		}
	}
	return ""
}

// validFilter says what is wrong with a subject to receive, or "".
func validFilter(s string) string {
	if wrong := validSubject(s); wrong != "" {
		return wrong
	}
	if head, _ := strings.CutSuffix(s, ">"); hasToken(head, ">") {
		return "has the wildcard > before its end"
	}
	return ""
}

func hasWildcard(s string) bool { return hasToken(s, "*") || hasToken(s, ">") }

func hasToken(s, token string) bool {
	if !strings.Contains(s, token) {
		return false
	}
	for t := range strings.SplitSeq(s, ".") {
		if t == token {
			return true
		}
	}
	return false
}

// covers reports whether a filter receives a subject, or every subject that another filter does.
func covers(filter, other string) bool {
	for filter != "" && other != "" {
		var f, o string
		f, filter, _ = strings.Cut(filter, ".")
		if f == ">" {
			return true
		}
		o, other, _ = strings.Cut(other, ".")
		if o == ">" || f != "*" && f != o {
			return false
		}
	}
	return filter == "" && other == ""
}

// publishable returns a ConfigError for a subject that cannot be published to.
func publishable(s string) error {
	if wrong := validSubject(s); wrong != "" {
		return &ConfigError{Field: "subject", Value: s, Reason: wrong + "; expected tokens separated by single dots"}
	}
	if hasWildcard(s) {
		return &ConfigError{Field: "subject", Value: s, Reason: "holds a wildcard; publish to a subject that is spelled out"}
	}
	return nil
}

// validName says what is wrong with the name of a stream or durable that is not empty, or "".
func validName(s string) string {
	switch {
	case len(s) > maxNameLen:
		return fmt.Sprintf("is longer than %d bytes", maxNameLen)
	case strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`.*>/\`, r)
	}):
		return `holds a space or one of . * > / \`
	}
	return ""
}

// derivedDurable is the durable's name for a service and a subject. It is a persistent
// identity: a change here orphans every durable in the field.
//
// Readable where that is unambiguous: dots become dashes, * any, > all. A service name or
// subject that already uses what these turn into, or anything beyond letters, digits and
// underscores, gets a hash of both at the end. "--" starts the hash and cannot come
// from a readable name, because a subject has no empty tokens.
func derivedDurable(service, subject string) string {
	plain := isWord(strings.ReplaceAll(service, "-", "")) &&
		!strings.Contains(service, "_") && !strings.Contains(service, "--")
	tokens := strings.Split(subject, ".")
	for i, t := range tokens {
		switch {
		case t == "*":
			tokens[i] = "any"
		case t == ">":
			tokens[i] = "all"
		case t == "any" || t == "all" || !isWord(t):
			plain = false
			tokens[i] = mapWord(t)
		}
	}
	name := mapWord(service) + "_" + strings.Join(tokens, "-")
	const hashLen = 16
	if plain && len(name) <= maxNameLen {
		return name
	}
	sum := sha256.Sum256([]byte(service + "\x00" + subject))
	name = strings.ReplaceAll(name, "--", "-")
	name = name[:min(len(name), maxNameLen-hashLen-2)]
	return name + "--" + hex.EncodeToString(sum[:])[:hashLen]
}

func isWord(s string) bool { return s != "" && mapWord(s) == s && !strings.Contains(s, "-") }

// mapWord replaces what is not a letter, digit or underscore by a dash.
func mapWord(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_':
			return r
		}
		return '-'
	}, s)
}
