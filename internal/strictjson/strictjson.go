// Package strictjson reads configuration files: JSON in which every key is known,
// spelled exactly and present once. It finds all mistakes of a file at once. Its errors
// say where in the file something is wrong, and quote nothing that may be a secret. It
// checks types, not whether a setting makes sense. Read first:
//
//	strictjson.go  the decoder
//	hints.go       what an unknown key was probably meant to be; synonyms.go
//	expand.go      ${NAME}, also within the login of a URL
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"
)

// wholeFile is the Path of an error about no setting in particular.
const wholeFile = "service file"

// Error says what is wrong and where. Value is what stands there, if it can be shown.
type Error struct{ Path, Value, Reason string }

func (e *Error) Error() string { return e.Path + ": " + e.Reason }

// Errors are all mistakes of a file, in the order of the file.
type Errors []*Error

func (all Errors) Error() string {
	texts := make([]string, len(all))
	for i, e := range all {
		texts[i] = e.Error()
	}
	return strings.Join(texts, "\n")
}

// Unwrap returns the mistakes one by one.
func (all Errors) Unwrap() []error {
	errs := make([]error, len(all))
	for i, e := range all {
		errs[i] = e
	}
	return errs
}

// Decode fills the struct that into points to. Its error is of type Errors; what is
// right in the file is filled in all the same. json.Unmarshal would not do: it takes
// keys in any case and the last of two equal ones, does not say where an unknown key
// is, and may quote from a password.
func Decode(data []byte, into any) error {
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // some editors write one
	if wrong := checkJSON(data); wrong != nil {
		return Errors{wrong}
	}
	v := reflect.ValueOf(into).Elem()
	d := decoder{Decoder: json.NewDecoder(bytes.NewReader(data))}
	d.levels = levelsOf(v.Type(), "", nil)
	d.UseNumber()
	d.value(place{path: wholeFile}, v)
	if len(d.errs) > 0 {
		return d.errs
	}
	return nil
}

// checkJSON makes sure that data is one JSON value. Its error says where that ends,
// without the text found there.
func checkJSON(data []byte) *Error {
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
		reason = "goes on after the end of its JSON, " + position(data, len(data)-len(rest)) +
			"; take out what is too much, or a brace that comes too early"
	case errors.Is(first, io.ErrUnexpectedEOF):
		reason = "ends in the middle; add the quote, bracket or brace that is missing"
	default:
		reason = "is not JSON; look for a comma, quote or bracket that is missing or too much"
		if at, ok := errors.AsType[*json.SyntaxError](syntax); ok {
			reason = "is not JSON " + position(data, int(at.Offset)-1) +
				"; look there for a comma, quote or bracket that is missing or too much"
		}
	}
	return &Error{Path: wholeFile, Reason: reason}
}

// position says in which line and column a byte is.
func position(data []byte, offset int) string {
	before := data[:min(max(offset, 0), len(data))]
	line := before[bytes.LastIndexByte(before, '\n')+1:]
	return fmt.Sprintf("at line %d, column %d", 1+bytes.Count(before, []byte("\n")), 1+utf8.RuneCount(line))
}

// place is where in a file a value is.
type place struct {
	path   string // such as consumers[0].nats.subjects
	level  string // the same without indexes, and empty at the top
	secret bool   // values here and below are not shown
	url    bool   // strings here and below are URLs of servers
}

var (
	// secretKeys are keys of passwords, and of URLs that may contain one.
	secretKeys = []string{"password", "token", "servers", "brokers"}
	urlKeys    = []string{"servers", "brokers"}
)

func (p place) key(name string) place {
	below := place{
		path: name, level: strings.TrimPrefix(p.level+"."+name, "."),
		secret: p.secret || slices.Contains(secretKeys, name),
		url:    p.url || slices.Contains(urlKeys, name),
	}
	if p.path != wholeFile {
		below.path = p.path + "." + name
	}
	return below
}

func (p place) index(i int) place {
	p.path, p.level = fmt.Sprintf("%s[%d]", p.path, i), p.level+"[]"
	return p
}

func (p place) wrong(format string, args ...any) *Error {
	return &Error{Path: p.path, Reason: fmt.Sprintf(format, args...)}
}

// wrongValue quotes the value, unless it is a secret.
func (p place) wrongValue(value, reason string) *Error {
	if p.secret {
		value = ""
	}
	return &Error{Path: p.path, Value: value, Reason: reason}
}

// decoder fills Go values from the tokens of a valid JSON text.
type decoder struct {
	*json.Decoder

	levels []level
	errs   Errors
}

func (d *decoder) wrong(e *Error) { d.errs = append(d.errs, e) }

// token returns the next token. The text was found to be valid JSON, so there is one.
func (d *decoder) token() json.Token {
	token, err := d.Token()
	if err != nil {
		panic("strictjson: valid JSON cannot be read") // its text may be a secret
	}
	return token
}

// skip reads on to the end of the value that begins with token.
func (d *decoder) skip(token json.Token) {
	for depth := 0; ; token = d.token() {
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return
		}
	}
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	policyType   = reflect.TypeFor[jetstream.DeliverPolicy]()
	policies     = map[string]jetstream.DeliverPolicy{
		"all": jetstream.DeliverAllPolicy, "new": jetstream.DeliverNewPolicy,
		"last": jetstream.DeliverLastPolicy, "last_per_subject": jetstream.DeliverLastPerSubjectPolicy,
	}
)

// value fills v from the next value.
func (d *decoder) value(at place, v reflect.Value) {
	token := d.token()
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch {
	case token == json.Delim('{') && v.Kind() == reflect.Struct:
		d.object(at, v)
	case token == json.Delim('[') && v.Kind() == reflect.Slice:
		d.list(at, v)
	default:
		d.errs = append(d.errs, scalar(at, v, token)...)
		d.skip(token)
	}
}

// scalar fills v from a single token, if it is of the right type.
func scalar(at place, v reflect.Value, token json.Token) Errors {
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
	return Errors{at.wrong("is %s; expected %s", found, expected(v))}
}

// expected says what v takes.
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

// list fills a slice. It is not nil afterwards, even if the list is empty.
func (d *decoder) list(at place, v reflect.Value) {
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	for d.More() {
		element := reflect.New(v.Type().Elem()).Elem()
		d.value(at.index(v.Len()), element)
		v.Set(reflect.Append(v, element))
	}
	d.token()
}

// object fills a struct by the JSON names of its fields, and of its embedded structs'
// fields.
func (d *decoder) object(at place, v reflect.Value) {
	known := fieldsOf(v.Type())
	seen := map[string]bool{}
	for d.More() {
		key := fmt.Sprint(d.token())
		i := slices.IndexFunc(known, func(f field) bool { return f.name == key })
		switch {
		case i < 0 && !plainKey.MatchString(key): // perhaps a URL in the wrong place
			d.wrong(at.wrong("has a key that is no name (not shown: it may hold a password); %s",
				Suggestion("", names(known))))
		case i < 0:
			d.wrong(at.key(key).wrong("unknown key; %s", d.suggest(at.level, key)))
		case seen[key]:
			d.wrong(at.key(key).wrong("is there twice; keep one"))
		default:
			seen[key] = true
			d.value(at.key(key), v.FieldByIndex(known[i].index))
			continue
		}
		d.skip(d.token())
	}
	d.token()
}

var plainKey = regexp.MustCompile(`^[\w-]{1,40}$`)

func number(at place, v reflect.Value, digits string) Errors {
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v.OverflowInt(n) {
		return Errors{at.wrongValue(digits, "is not a whole number, or too large; expected one such as 10")}
	}
	v.SetInt(n)
	return nil
}

// fill sets v from a string: a string, duration or deliver policy.
func fill(at place, v reflect.Value, s string) Errors {
	s, errs := expand(at, s)
	if errs != nil {
		return errs
	}
	switch v.Type() {
	case durationType:
		d, err := time.ParseDuration(s)
		if err != nil {
			return Errors{at.wrongValue(s, "is no duration; write a number with its unit, such as 250ms, 10s or 1m")}
		}
		v.SetInt(int64(d))
	case policyType:
		p, ok := policies[s]
		if !ok {
			return Errors{at.wrongValue(s, "is not known; expected "+expected(v))}
		}
		v.SetInt(int64(p))
	default:
		v.SetString(s)
	}
	return nil
}
