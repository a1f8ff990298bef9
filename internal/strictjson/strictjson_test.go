package strictjson

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type embedded struct {
	Min time.Duration `json:"backoff_min,omitempty"`
}

type consumer struct {
	embedded

	Subjects []string                `json:"subjects"`
	Workers  int                     `json:"workers"`
	Small    int8                    `json:"small"`
	Ordered  *bool                   `json:"ordered"`
	Start    jetstream.DeliverPolicy `json:"deliver_policy"`
	AckWait  time.Duration           `json:"ack_wait"`
	Brokers  []string                `json:"brokers"`
	Hidden   string                  `json:"-"`
	Unnamed  string
}

type login struct {
	Password string `json:"password"`
	Deep     struct {
		Number int           `json:"number"`
		Text   string        `json:"text"`
		Wait   time.Duration `json:"wait"`
	} `json:"deep"`
}

type file struct {
	Name      string     `json:"name"`
	Token     string     `json:"token"`
	Login     *login     `json:"login"`
	Servers   []login    `json:"servers"`
	Consumers []consumer `json:"consumers"`
}

func TestEveryTypeOfSettingIsRead(t *testing.T) {
	t.Setenv("STRICTJSON_NAME", "orders")
	var f file
	require.NoError(t, Decode([]byte("\ufeff"+`{
		"name": "${STRICTJSON_NAME}-$$1",
		"login": {"password": "p\"w"},
		"consumers": [
			{"subjects": ["a", "b"], "workers": -7, "small": 127, "ordered": false, "ack_wait": "1m30s", "backoff_min": "250ms"},
			{"subjects": [], "deliver_policy": "last_per_subject"}
		]
	}`), &f))
	unordered := false
	assert.Equal(t, file{
		Name: "orders-$1", Login: &login{Password: `p"w`},
		Consumers: []consumer{
			{
				embedded: embedded{250 * time.Millisecond}, Subjects: []string{"a", "b"},
				Workers: -7, Small: 127, Ordered: &unordered, AckWait: 90 * time.Second,
			},
			{Subjects: []string{}, Start: jetstream.DeliverLastPerSubjectPolicy},
		},
	}, f)
}

func TestWhatIsWrongIsSaidWithItsPlace(t *testing.T) {
	t.Parallel()
	const number = "is not a whole number, or too large; expected one such as 10"
	const duration = "is no duration; write a number with its unit, such as 250ms, 10s or 1m"
	const policy = `"all", "new", "last" or "last_per_subject"`
	for text, want := range map[string]Error{
		// The text.
		"":                        {wholeFile, "", "is empty; expected a JSON object with consumers in it"},
		" \n":                     {wholeFile, "", "is empty; expected a JSON object with consumers in it"},
		"{\"name\":\"\xff\"}":     {wholeFile, "", "is not UTF-8; save it in that encoding"},
		`{"name":"a"`:             {wholeFile, "", "ends in the middle; add the quote, bracket or brace that is missing"},
		"{}\n {}":                 {wholeFile, "", "goes on after the end of its JSON, at line 2, column 2; take out what is too much, or a brace that comes too early"},
		"{\n\t\"name\": \"ä\" 1}": {wholeFile, "", "is not JSON at line 2, column 14; look there for a comma, quote or bracket that is missing or too much"},
		`[]`:                      {wholeFile, "", "is a list; expected an object"},
		`null`:                    {wholeFile, "", "is null; expected an object"},
		// Keys.
		`{"nam":"a"}`:                       {"nam", "", `unknown key; did you mean "name"`},
		`{"Name":"a"}`:                      {"Name", "", `unknown key; did you mean "name"`},
		`{"frobnicate":1}`:                  {"frobnicate", "", "unknown key; expected name, token, login, servers, consumers"},
		`{"consumers":[{},{"worker":1}]}`:   {"consumers[1].worker", "", `unknown key; did you mean "workers"`},
		`{"consumers":[{"Hidden":"a"}]}`:    {"consumers[0].Hidden", "", "unknown key; expected "},
		`{"consumers":[{"Unnamed":"a"}]}`:   {"consumers[0].Unnamed", "", "unknown key; expected "},
		`{"name":"a","name":"a"}`:           {"name", "", "is there twice; keep one"},
		`{"nats://u:hunter2@a":1}`:          {wholeFile, "", "has a key that is no name (not shown: it may hold a password); expected name"},
		`{"login":{"nats://u:hunter2@a":1}`: {wholeFile, "", "ends in the middle"},
		// Types.
		`{"name":1}`:                               {"name", "", "is a number; expected a string"},
		`{"name":{}}`:                              {"name", "", "is an object; expected a string"},
		`{"name":null}`:                            {"name", "", "is null; expected a string"},
		`{"login":"a"}`:                            {"login", "", "is a string; expected an object"},
		`{"consumers":{}}`:                         {"consumers", "", "is an object; expected a list"},
		`{"consumers":[[]]}`:                       {"consumers[0]", "", "is a list; expected an object"},
		`{"consumers":[{"subjects":"a"}]}`:         {"consumers[0].subjects", "", "is a string; expected a list"},
		`{"consumers":[{"subjects":["a",true]}]}`:  {"consumers[0].subjects[1]", "", "is true or false; expected a string"},
		`{"consumers":[{"ordered":"true"}]}`:       {"consumers[0].ordered", "", "is a string; expected true or false, without quotes"},
		`{"consumers":[{"workers":"1"}]}`:          {"consumers[0].workers", "", "is a string; expected a whole number, without quotes"},
		`{"consumers":[{"workers":1.5}]}`:          {"consumers[0].workers", "1.5", number},
		`{"consumers":[{"workers":1e3}]}`:          {"consumers[0].workers", "1e3", number},
		`{"consumers":[{"small":128}]}`:            {"consumers[0].small", "128", number},
		`{"consumers":[{"ack_wait":10}]}`:          {"consumers[0].ack_wait", "", `is a number; expected a duration in quotes, such as "10s"`},
		`{"consumers":[{"ack_wait":"10"}]}`:        {"consumers[0].ack_wait", "10", duration},
		`{"consumers":[{"backoff_min":"soon"}]}`:   {"consumers[0].backoff_min", "soon", duration},
		`{"consumers":[{"deliver_policy":0}]}`:     {"consumers[0].deliver_policy", "", "is a number; expected " + policy},
		`{"consumers":[{"deliver_policy":"ALL"}]}`: {"consumers[0].deliver_policy", "ALL", "is not known; expected " + policy},
		// The environment.
		`{"name":"a${STRICTJSON_UNSET}"}`: {"name", "", "${STRICTJSON_UNSET} is not set in the environment; set it, or write $$ for a dollar sign"},
		`{"name":"${strictjson_unset}"}`:  {"name", "", "${strictjson_unset} is not set in the environment"},
		`{"name":"${a b}"}`:               {"name", "", "has ${ in it without the name of an environment variable and a }; write ${NAME}, or $$ for a dollar sign"},
		`{"name":"${A"}`:                  {"name", "", "has ${ in it without the name"},
	} {
		err := Decode([]byte(text), &file{})
		got, ok := errors.AsType[*Error](err)
		if !assert.True(t, ok, "%s: %v", text, err) {
			continue
		}
		assert.Equal(t, want.Path, got.Path, text)
		assert.Equal(t, want.Value, got.Value, text)
		assert.Contains(t, got.Reason, want.Reason, text)
		assert.Equal(t, got.Path+": "+got.Reason, err.Error())
	}
}

func TestSecretsAreNotQuoted(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{"token":"hunter2${"}`,
		`{"token":"a${hunter2}"}`,
		`{"login":{"password":"${hunter2}"}}`,
		`{"login":{"password":"${hunter2"}}`,
		`{"login":{"password":["hunter2"]}}`,
		`{"servers":[{"deep":{"text":"${hunter2}"}}]}`,
		`{"consumers":[{"brokers":["${hunter2}"]}]}`,
		`{"servers":[{"deep":{"wait":"hunter2"}}]}`,
		`{"nats://u:hunter2@a":"a"}`,
		`{"login":{"u:hunter2":"a"}}`,
		`{"token":"hunter2" "hunter2"}`,
		`{"token":"hunter2"} hunter2`,
		`{"token":"hunter2`,
		"{\"token\":\"hunter2\n\"}",
		`{"token":hunter2}`,
		"{\"token\":\"hunter2\xff\"}",
	} {
		err := Decode([]byte(text), &file{})
		wrong, ok := errors.AsType[*Error](err)
		if assert.True(t, ok, "%s: %v", text, err) {
			assert.NotContains(t, wrong.Path+wrong.Value+wrong.Reason, "hunter2", text)
		}
	}
}

func TestSuggestionIsTheNearestNameOrAll(t *testing.T) {
	t.Parallel()
	known := []string{"orders", "order", "payments"}
	for name, want := range map[string]string{
		"ordres":  `did you mean "orders"`,
		"oder":    `did you mean "order"`,
		"payment": `did you mean "payments"`,
		"x":       "expected orders, order, payments",
		"":        "expected orders, order, payments",
	} {
		assert.Equal(t, want, Suggestion(name, known), name)
	}
	for pair, want := range map[[2]string]int{
		{"", ""}: 0, {"", "abc"}: 3, {"abc", ""}: 3, {"kitten", "sitting"}: 3, {"ab", "ba"}: 2, {"abc", "abc"}: 0,
	} {
		assert.Equal(t, want, distance(pair[0], pair[1]), pair)
	}
}

func TestEveryMistakeIsReported(t *testing.T) {
	t.Parallel()
	var f file
	err := Decode([]byte(`{
		"nam": {"a": [1, {"b": 2}]}, "token": 7, "token": [[1]], "consumers": [
			{"subjects": ["a", 1, {"x": []}, "b"], "ack_wait": "1", "workers": [2], "brokers": ["${STRICTJSON_A}:${STRICTJSON_B}@h"]},
			[1], {"workers": 3}
		], "name": "read all the same"
	}`), &f)
	all, ok := errors.AsType[Errors](err)
	require.True(t, ok)
	var paths []string
	for _, e := range all {
		paths = append(paths, e.Path)
	}
	assert.Equal(t, []string{
		"nam", "token", "token", "consumers[0].subjects[1]", "consumers[0].subjects[2]", "consumers[0].ack_wait",
		"consumers[0].workers", "consumers[0].brokers[0]", "consumers[0].brokers[0]", "consumers[1]",
	}, paths)
	assert.Len(t, err.(Errors).Unwrap(), len(paths)) //nolint:errorlint // the type is what is tested
	assert.Equal(t, "read all the same", f.Name)
	assert.Equal(t, 3, f.Consumers[2].Workers)
}

func TestHintsNameWhatAKeyWasMeantToBe(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"NAME":1}`:                             `did you mean "name"`,
		`{"url":1}`:                              `did you mean "servers"`,
		`{"creds":1}`:                            `expected name, token, login, servers, consumers`,
		`{"consumers":[{"url":1}]}`:              `did you mean "brokers"`,
		`{"consumers":[{"AckWait":1}]}`:          `did you mean "ack_wait"`,
		`{"consumers":[{"ack_wait_ms":1}]}`:      `did you mean "ack_wait", a duration in quotes such as "10s"`,
		`{"consumers":[{"ackWaitInSeconds":1}]}`: `did you mean "ack_wait", a duration in quotes such as "10s"`,
		`{"consumers":[{"workers_s":1}]}`:        `did you mean "workers"`,
		`{"consumers":[{"token":1}]}`:            `did you mean "token", which belongs at the top of the file`,
		`{"subjects":1}`:                         `did you mean "subjects", which belongs under consumers[]`,
		`{"number":1}`:                           `did you mean "number", which belongs under login.deep`,
		`{"consumer":1}`:                         `did you mean "consumers"`,
	} {
		err := Decode([]byte(text), &file{})
		if assert.Error(t, err, text) {
			assert.Equal(t, "unknown key; "+want, err.(Errors)[0].Reason, text) //nolint:errorlint // the type is what is tested
		}
	}
	for name, of := range synonyms {
		assert.Equal(t, plainly(name), name, "a synonym is looked up in this form")
		assert.NotEmpty(t, of)
	}
}

func TestVariablesInTheLoginOfAURLAreEncoded(t *testing.T) {
	t.Setenv("STRICTJSON_V", "a@b/c")
	t.Setenv("STRICTJSON_USER", "u:v")
	t.Setenv("STRICTJSON_DONE", "a%40b")
	t.Setenv("STRICTJSON_HOST", "h:1,g:2")
	for text, want := range map[string]string{
		"nats://u:${STRICTJSON_V}@h":                   "nats://u:a%40b%2Fc@h",
		"nats://${STRICTJSON_V}@h":                     "nats://a%40b%2Fc@h",
		"u:${STRICTJSON_V}@h":                          "u:a%40b%2Fc@h",
		"nats://${STRICTJSON_USER}:p@h":                "nats://u%3Av:p@h",
		"nats://${STRICTJSON_USER}@h":                  "nats://u:v@h",
		"nats://u:${STRICTJSON_DONE}@h":                "nats://u:a%40b@h",
		"nats://u:${STRICTJSON_V}-${STRICTJSON_V}@h":   "nats://u:a%40b%2Fc-a%40b%2Fc@h",
		"nats://g,nats://u:${STRICTJSON_V}@h,nats://h": "nats://g,nats://u:a%40b%2Fc@h,nats://h",
		"nats://u:p@${STRICTJSON_HOST}":                "nats://u:p@h:1,g:2",
		"${STRICTJSON_HOST}":                           "h:1,g:2",
		"nats://${STRICTJSON_HOST}/x@y":                "nats://h:1,g:2/x@y",
		"nats://u:p$$@h":                               "nats://u:p$@h",
	} {
		got, errs := expand(place{url: true}, text)
		assert.Empty(t, errs)
		assert.Equal(t, want, got, text)
	}
	got, _ := expand(place{}, "u:${STRICTJSON_V}@h")
	assert.Equal(t, "u:a@b/c@h", got, "elsewhere nothing is encoded")
}
