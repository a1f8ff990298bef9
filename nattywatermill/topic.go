package nattywatermill

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/natty-go/natty"
)

// EscapeTopic maps every topic to a NATS subject of its own, for the Subject setting of
// a configuration. Letters, digits, dashes and underscores stay, and so does a dot
// between two of the topic's other characters. Everything else, wildcards too, becomes %
// and the hexadecimal code of each byte: "new orders" becomes "new%20orders". The empty
// topic becomes a single "%".
func EscapeTopic(topic string) string {
	if topic == "" {
		return "%"
	}
	var b strings.Builder
	for i := range len(topic) {
		c := topic[i]
		between := i > 0 && i < len(topic)-1 && topic[i-1] != '.'
		if isNameByte(c) || c == '.' && between {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// durableName returns the durable's name for a group and a subject, by the rule by which
// natty makes one of Config.Name and a subject. So a service can change between this
// package and natty's Process, and its messages go on where they were. The name is a
// persistent identity: a change here orphans every durable in the field.
//
// Dots become dashes, * becomes any and > becomes all. Where that is ambiguous, or
// something else had to be replaced, a hash follows.
func durableName(group, subject string) string {
	const (
		longest = 255 // what the server allows
		hashLen = 16
	)
	plain := isWord(strings.ReplaceAll(group, "-", "")) && !strings.Contains(group, "_") &&
		!strings.Contains(group, "--")
	tokens := strings.Split(subject, ".")
	for i, token := range tokens {
		switch token {
		case "*":
			tokens[i] = "any"
		case ">":
			tokens[i] = "all"
		default:
			plain = plain && isWord(token) && token != "any" && token != "all"
			tokens[i] = dashed(token)
		}
	}
	name := dashed(group) + "_" + strings.Join(tokens, "-")
	if plain && len(name) <= longest {
		return name
	}
	sum := sha256.Sum256([]byte(group + "\x00" + subject))
	name = strings.ReplaceAll(name, "--", "-")
	return name[:min(len(name), longest-hashLen-2)] + "--" + hex.EncodeToString(sum[:])[:hashLen]
}

// isWord reports whether s has nothing but letters, digits and underscores.
func isWord(s string) bool { return s != "" && dashed(s) == s && !strings.Contains(s, "-") }

// dashed replaces every rune that a durable's name should not have by a dash.
func dashed(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x80 && isNameByte(byte(r)) {
			return r
		}
		return '-'
	}, s)
}

func isNameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// subjectOf returns the subject of a topic, by the Subject setting.
func subjectOf(subject func(string) string, topic string) string {
	if subject == nil {
		return topic
	}
	return subject(topic)
}

// aboutTopic names the topic in an error, and the remedy if its subject is to blame.
func aboutTopic(topic string, err error) error {
	advice := ""
	wrong, ok := errors.AsType[*natty.ConfigError](err)
	if ok && (wrong.Field == "subject" || wrong.Field == "subjects") {
		advice = "; use topics that are NATS subjects, or map them with Subject: EscapeTopic, for example"
	}
	return fmt.Errorf("nattywatermill: topic %q: %w%s", topic, err, advice)
}
