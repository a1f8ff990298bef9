// Package subject checks and compares subjects, filters and names, and derives the
// names of durables. It works on strings alone: it knows no server and no
// configuration.
package subject

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxNameLen is the server's limit on the length of a stream's or consumer's name
// (JSMaxNameLen in nats-server).
const MaxNameLen = 255

// maxSubjectLen leaves room on a protocol line, which servers limit to 4096 bytes by
// default (max_control_line). A longer line makes the server drop the connection, and
// every retry would do so again.
const maxSubjectLen = 4000

// Invalid returns what is wrong with a subject, or "".
func Invalid(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > maxSubjectLen:
		return fmt.Sprintf("is longer than %d bytes", maxSubjectLen)
	case strings.ContainsFunc(s, blank):
		return "holds a space or a control character"
	case s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, ".."):
		return "has an empty token (a dot at an end, or two in a row)"
	}
	return ""
}

func blank(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }

// InvalidFilter returns what is wrong with a filter, a subject to receive, or "".
func InvalidFilter(s string) string {
	if wrong := Invalid(s); wrong != "" {
		return wrong
	}
	switch {
	case hasToken(s[:max(strings.LastIndexByte(s, '.'), 0)], ">"):
		return "has the wildcard > before its end"
	case !utf8.ValidString(s):
		return notUTF8
	}
	return ""
}

// Filters and names are sent in JSON, which would make another one of it.
const notUTF8 = "is not valid UTF-8"

// Unpublishable returns why nobody can publish to a subject, or "".
func Unpublishable(s string) string {
	if wrong := Invalid(s); wrong != "" {
		return wrong + "; expected tokens separated by single dots"
	}
	if HasWildcard(s) {
		return "holds a wildcard; publish to a subject that is spelled out"
	}
	return ""
}

// HasWildcard reports whether one of the tokens of s is * or >.
func HasWildcard(s string) bool { return hasToken(s, "*") || hasToken(s, ">") }

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

// InvalidName returns what is wrong with the name of a stream or durable, or "". It
// accepts the empty name.
func InvalidName(s string) string {
	switch {
	case len(s) > MaxNameLen:
		return fmt.Sprintf("is longer than %d bytes", MaxNameLen)
	case strings.ContainsFunc(s, blank), strings.ContainsAny(s, `.*>/\`):
		return `holds a space or one of . * > / \`
	case !utf8.ValidString(s):
		return notUTF8
	}
	return ""
}

// DurableName returns the durable's name for a service and a subject. The name is a
// persistent identity: a change here orphans every durable in the field.
//
// The name is readable where that is unambiguous: dots become dashes, * becomes any and
// > becomes all. Otherwise a hash of service and subject follows. That is so if one of
// them already contains what these become, or anything but letters, digits and
// underscores. The hash begins with "--", which no readable name contains, because a
// subject has no empty tokens.
func DurableName(service, subject string) string {
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
	if plain && len(name) <= MaxNameLen {
		return name
	}
	sum := sha256.Sum256([]byte(service + "\x00" + subject))
	name = strings.ReplaceAll(name, "--", "-")
	name = name[:min(len(name), MaxNameLen-hashLen-2)]
	return name + "--" + hex.EncodeToString(sum[:])[:hashLen]
}

func isWord(s string) bool { return s != "" && mapWord(s) == s && !strings.Contains(s, "-") }

// mapWord replaces every rune but ASCII letters, digits and underscores by a dash.
func mapWord(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_':
			return r
		}
		return '-'
	}, s)
}
