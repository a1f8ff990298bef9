package strictjson

import (
	"net/url"
	"os"
	"regexp"
	"strings"
)

var (
	reference = regexp.MustCompile(`\$\$|\$\{[^}]*\}?`)
	variable  = regexp.MustCompile(`^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$`)
)

// expand replaces ${NAME} by the environment variable, and $$ by a dollar sign.
func expand(at place, s string) (string, Errors) {
	var errs Errors
	var out strings.Builder
	end := 0 // of what is written
	for _, ref := range reference.FindAllStringIndex(s, -1) {
		out.WriteString(s[end:ref[0]])
		end = ref[1]
		if s[ref[0]:end] == "$$" {
			out.WriteByte('$')
			continue
		}
		value, wrong := lookup(at, s[ref[0]:end])
		if wrong != nil {
			errs = append(errs, wrong)
		}
		if at.url {
			value = inLogin(s[:ref[0]], value, s[end:])
		}
		out.WriteString(value)
	}
	out.WriteString(s[end:])
	return out.String(), errs
}

// lookup returns the value of a reference such as ${NAME}.
func lookup(at place, ref string) (string, *Error) {
	name := variable.FindStringSubmatch(ref)
	if name == nil {
		return "", at.wrong("has ${ in it without the name of an environment variable and a }; " +
			"write ${NAME}, or $$ for a dollar sign")
	}
	value, ok := os.LookupEnv(name[1])
	if !ok {
		// A name in lower case may as well be a part of the password.
		if at.secret && ref != strings.ToUpper(ref) {
			ref = "${…}"
		}
		return "", at.wrong("%s is not set in the environment; set it, or write $$ for a dollar sign", ref)
	}
	return value, nil
}

// inLogin returns a value that is filled in between before and after in a list of URLs.
// In the login of a URL it is percent-encoded: a password that comes from a secret store
// may have an @ or a / in it, which would end the login or the host too early.
func inLogin(before, value, after string) string {
	before = before[strings.LastIndexByte(before, ',')+1:]
	if _, rest, ok := strings.Cut(before, "://"); ok {
		before = rest
	}
	// What stands between this value and the host may hold references too.
	after = reference.ReplaceAllString(after, "")
	stop := strings.IndexAny(after, "@/?#,")
	if stop < 0 || after[stop] != '@' || strings.ContainsAny(reference.ReplaceAllString(before, ""), "@/?#") {
		return value
	}
	if before == "" && stop == 0 { // the whole login: the first colon ends the user's name
		if user, password, ok := strings.Cut(value, ":"); ok {
			return encoded(user) + ":" + encoded(password)
		}
	}
	value = encoded(value)
	if before == "" { // the user's name
		value = strings.ReplaceAll(value, ":", "%3A")
	}
	return value
}

// inURL is text that may stand in the login of a URL as it is. The percent signs in it
// are of characters that are encoded already.
var inURL = regexp.MustCompile(`^([A-Za-z0-9\-._~!$&'()*+;=:]|%[0-9A-Fa-f]{2})*$`)

// encoded returns value percent-encoded, unless it is.
func encoded(value string) string {
	if inURL.MatchString(value) {
		return value
	}
	return strings.ReplaceAll(url.QueryEscape(value), "+", "%20")
}
