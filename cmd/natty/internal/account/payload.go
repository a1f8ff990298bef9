package account

import (
	"encoding/hex"
	"encoding/json"
	"unicode"
	"unicode/utf8"
)

// Payload is the data of a message. As JSON it is {"text": …}, or {"hex": …} if it is
// not text, with the size in bytes.
type Payload []byte

// IsText reports whether people can read the payload as it is.
func (p Payload) IsText() bool {
	if !utf8.Valid(p) {
		return false
	}
	for _, r := range string(p) {
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != '\r' {
			return false
		}
	}
	return true
}

// Dump returns the payload as text, or as a table of hexadecimal bytes.
func (p Payload) Dump() string {
	if p.IsText() {
		return string(p)
	}
	return hex.Dump(p)
}

// MarshalJSON implements json.Marshaler.
func (p Payload) MarshalJSON() ([]byte, error) {
	out := struct {
		Size int     `json:"size"`
		Text *string `json:"text,omitempty"`
		Hex  *string `json:"hex,omitempty"`
	}{Size: len(p)}
	text := string(p)
	if p.IsText() {
		out.Text = &text
	} else {
		text = hex.EncodeToString(p)
		out.Hex = &text
	}
	return json.Marshal(out)
}
