package natty

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"
)

// wholeFile is the Field of an error about no setting in particular.
const wholeFile = "service file"

// decodeFile fills the struct that into points to. It takes the place of json.Unmarshal, which takes keys in any case
// and the last of two equal ones, does not say where the unknown ones are, and may quote from a password.
func decodeFile(data []byte, into any) error {
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // some editors write one
	if err := checkJSON(data); err != nil {
		return err
	}
	d := decoder{json.NewDecoder(bytes.NewReader(data))}
	d.UseNumber()
	return d.value(place{path: wholeFile}, reflect.ValueOf(into).Elem())
}

// checkJSON makes sure that data is one JSON value, and says where it is not, without the text found there.
func checkJSON(data []byte) error {
	var value json.RawMessage
	syntax := json.Unmarshal(data, &value)
	d := json.NewDecoder(bytes.NewReader(data))
	first := d.Decode(&value)
	var reason string
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		reason = "is empty; expected a JSON object with consumers in it"
	case !utf8.Valid(data):
		reason = "is not UTF-8; save it in that encoding"
	case syntax == nil:
		return nil
	case first == nil:
		rest := bytes.TrimSpace(data[d.InputOffset():])
		reason = "goes on after the end of its JSON, " + position(data, len(data)-len(rest)) + "; take out what is too much, or a brace that comes too early"
	case errors.Is(first, io.ErrUnexpectedEOF):
		reason = "ends in the middle; add the quote, bracket or brace that is missing"
	default:
		reason = "is not JSON; look for a comma, quote or bracket that is missing or too much"
		if at, ok := errors.AsType[*json.SyntaxError](syntax); ok {
			reason = "is not JSON " + position(data, int(at.Offset)-1) + "; look there for a comma, quote or bracket that is missing or too much"
		}
	}
	return &ConfigError{Field: wholeFile, Reason: reason}
}

// position says where a byte is.
func position(data []byte, offset int) string {
	before := data[:min(max(offset, 0), len(data))]
	line := before[bytes.LastIndexByte(before, '\n')+1:]
	return fmt.Sprintf("at line %d, column %d", 1+bytes.Count(before, []byte("\n")), 1+utf8.RuneCount(line))
}

// place is where in a file a value is.
type place struct {
	path   string // consumers[0].nats.subjects
	secret bool   // what stands here, or below, is not shown
}

// secretKeys hold passwords, or URLs with some.
var secretKeys = []string{"password", "token", "servers", "brokers"}

func (p place) key(name string) place {
	below := place{path: name, secret: p.secret || slices.Contains(secretKeys, name)}
	if p.path != wholeFile {
		below.path = p.path + "." + name
	}
	return below
}

func (p place) wrong(format string, args ...any) error {
	return &ConfigError{Field: p.path, Reason: fmt.Sprintf(format, args...)}
}

// decoder fills Go values from the tokens of a valid JSON text.
type decoder struct{ *json.Decoder }

var (
	durationType = reflect.TypeFor[time.Duration]()
	policyType   = reflect.TypeFor[jetstream.DeliverPolicy]()
	policies     = map[string]jetstream.DeliverPolicy{
		"all": jetstream.DeliverAllPolicy, "new": jetstream.DeliverNewPolicy,
		"last": jetstream.DeliverLastPolicy, "last_per_subject": jetstream.DeliverLastPerSubjectPolicy,
	}
)

// value fills v from the next value.
func (d decoder) value(at place, v reflect.Value) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch {
	case token == json.Delim('{') && v.Kind() == reflect.Struct:
		return d.object(at, v)
	case token == json.Delim('[') && v.Kind() == reflect.Slice:
		return d.list(at, v)
	}
	return scalar(at, v, token)
}

// scalar fills v from a single token, if it is of the right type.
func scalar(at place, v reflect.Value, token json.Token) error {
	text := v.Kind() == reflect.String || v.Type() == durationType || v.Type() == policyType
	found := "null"
	switch token := token.(type) {
	case json.Delim:
		found = map[json.Delim]string{'{': "an object", '[': "a list"}[token]
	case string:
		if text {
			return fill(at, v, token)
		}
		found = "a string"
	case bool:
		if v.Kind() == reflect.Bool {
			v.SetBool(token)
			return nil
		}
		found = "true or false"
	case json.Number:
		if v.CanInt() && !text {
			return number(at, v, token.String())
		}
		found = "a number"
	}
	return at.wrong("is %s; expected %s", found, expected(v))
}

// expected says what is to be in v's place.
func expected(v reflect.Value) string {
	switch {
	case v.Type() == durationType:
		return `a duration in quotes, such as "10s"`
	case v.Type() == policyType:
		return `"all", "new", "last" or "last_per_subject"`
	}
	switch v.Kind() {
	case reflect.Struct:
		return "an object"
	case reflect.Slice:
		return "a list"
	case reflect.Bool:
		return "true or false, without quotes"
	case reflect.String:
		return "a string"
	}
	return "a whole number, without quotes"
}

// list fills a slice, which is not nil then.
func (d decoder) list(at place, v reflect.Value) error {
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	for d.More() {
		element := reflect.New(v.Type().Elem()).Elem()
		below := place{path: fmt.Sprintf("%s[%d]", at.path, v.Len()), secret: at.secret}
		if err := d.value(below, element); err != nil {
			return err
		}
		v.Set(reflect.Append(v, element))
	}
	_, err := d.Token()
	return err
}

// object fills a struct by the JSON names of its fields; those of embedded structs stand beside its own.
func (d decoder) object(at place, v reflect.Value) error {
	known := map[string][]int{}
	var names []string
	for _, f := range reflect.VisibleFields(v.Type()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			known[name] = f.Index
			names = append(names, name)
		}
	}
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		key := fmt.Sprint(token)
		field, ok := known[key]
		switch {
		case !ok && !plainKey.MatchString(key): // a URL, perhaps, that stands in a wrong place
			return at.wrong("has a key that is no name (not shown: it may hold a password); %s", suggestion("", names))
		case !ok:
			return at.key(key).wrong("unknown key; %s", suggestion(key, names))
		case seen[key]:
			return at.key(key).wrong("is there twice; keep one")
		}
		seen[key] = true
		if err := d.value(at.key(key), v.FieldByIndex(field)); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

var plainKey = regexp.MustCompile(`^[\w-]{1,40}$`)

// suggestion names the known name that is nearest, or all where none is near.
func suggestion(name string, known []string) string {
	nearest, least := "", len(name)/2+1
	for _, k := range known {
		if n := distance(name, k); n < least {
			nearest, least = k, n
		}
	}
	if nearest == "" {
		return "expected " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("did you mean %q", nearest)
}

// distance is how many characters to put in, take out or replace to get from a to b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1) // from what of a was looked at to each beginning of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

func number(at place, v reflect.Value, digits string) error {
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v.OverflowInt(n) {
		return &ConfigError{Field: at.path, Value: digits, Reason: "is not a whole number, or too large; expected one such as 10"}
	}
	v.SetInt(n)
	return nil
}

// fill sets a string, or what is written as one.
func fill(at place, v reflect.Value, s string) error {
	s, err := expand(at, s)
	if err != nil {
		return err
	}
	switch v.Type() {
	case durationType:
		d, err := time.ParseDuration(s)
		if err != nil {
			return &ConfigError{Field: at.path, Value: s, Reason: "is no duration; write a number with its unit, such as 250ms, 10s or 1m"}
		}
		v.SetInt(int64(d))
	case policyType:
		p, ok := policies[s]
		if !ok {
			return &ConfigError{Field: at.path, Value: s, Reason: "is not known; expected " + expected(v)}
		}
		v.SetInt(int64(p))
	default:
		v.SetString(s)
	}
	return nil
}

var (
	reference = regexp.MustCompile(`\$\$|\$\{[^}]*\}?`)
	variable  = regexp.MustCompile(`^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$`)
)

// expand puts in the environment's variables.
func expand(at place, s string) (string, error) {
	var failed error
	s = reference.ReplaceAllStringFunc(s, func(ref string) string {
		if ref == "$$" {
			return "$"
		}
		name := variable.FindStringSubmatch(ref)
		if name == nil {
			failed = at.wrong("has ${ in it without the name of an environment variable and a }; write ${NAME}, or $$ for a dollar sign")
			return ""
		}
		value, ok := os.LookupEnv(name[1])
		if !ok {
			// In lower case it may as well be a part of the password.
			if at.secret && ref != strings.ToUpper(ref) {
				ref = "${…}"
			}
			failed = at.wrong("%s is not set in the environment; set it, or write $$ for a dollar sign", ref)
		}
		return value
	})
	return s, failed
}
