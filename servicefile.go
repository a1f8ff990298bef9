package natty

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/natty-go/natty/internal/serverurl"
	"github.com/natty-go/natty/internal/strictjson"
)

// LoadService reads a service file, see ParseService.
func LoadService(path string) (*Service, error) {
	data, err := readFile("path", path)
	if err != nil {
		return nil, err
	}
	s, err := ParseService(data)
	return s, under(path+": ", err)
}

// ParseService reads the JSON of a service file: at the top the settings of Config
// under their JSON names, and a list of consumers.
//
//	{
//	  "name": "billing",
//	  "servers": ["nats://billing:${PASSWORD}@127.0.0.1:4222"],
//	  "consumers": [
//	    {"name": "orders", "type": "nats",
//	     "nats": {"subjects": ["orders.>"], "concurrency": 4, "ack_wait": "30s"}}
//	  ]
//	}
//
// Each consumer has a name, by which Run finds its handler, and the type "nats". With
// "enabled": false it is checked like the others, and not run. Under nats it has the
// settings of ConsumerConfig under their JSON names, backoff_min, backoff_max, and:
//
//   - brokers: servers of its own, instead of the file's. All other settings of the
//     connection are the file's. Its user, password and token count for those URLs in
//     brokers that have no login;
//   - user and password, token, creds_file, or nkey_file: a login of its own. It replaces
//     the file's login, and a login in the URLs of the file's servers;
//   - tls: settings of its own, which take the place of all of the file's tls;
//   - disable_reconnect: ends this consumer, and so Run, when its connection is lost;
//   - create_stream_if_not_exist: see ServiceConsumer.CreateStream; needs stream_name and
//     subjects.
//
// Durations are strings such as "10s" or "250ms", and deliver_policy is "all", "new",
// "last" or "last_per_subject". In every string ${NAME} stands for an environment
// variable, which must be set, and $$ for a dollar sign. A variable in the login of a
// URL, as above, may hold any characters: it is percent-encoded, unless it already is.
//
// Mistakes that need no server to be found are reported all at once: keys that are
// unknown or there twice, values of the wrong type, settings that can never work, a list
// of servers of which ${NAME} leaves none. Each is a *ConfigError that says where it is;
// errors.Join joins several. They do not show values of password, token, servers and
// brokers.
func ParseService(data []byte) (*Service, error) {
	var f serviceFile
	var mistakes []*ConfigError
	if wrong, ok := errors.AsType[strictjson.Errors](strictjson.Decode(data, &f)); ok {
		for _, e := range wrong {
			mistakes = append(mistakes, &ConfigError{Field: e.Path, Value: e.Value, Reason: e.Reason})
		}
	}
	s, more := f.service(mistakes)
	if mistakes = append(mistakes, more...); len(mistakes) == 0 {
		return s, nil
	}
	errs := make([]error, len(mistakes))
	for i, e := range mistakes {
		errs[i] = e
	}
	return nil, joined(errs...)
}

// service checks what the file says. found is what is wrong with it already; what is a
// consequence of that is not among the new mistakes.
func (f *serviceFile) service(found []*ConfigError) (*Service, []*ConfigError) {
	var mistakes []*ConfigError
	add := func(place string, err error) {
		for _, e := range configErrors(under(place, err)) {
			if !isConsequence(e, place, found) {
				mistakes = append(mistakes, e)
			}
		}
	}
	s := &Service{Config: f.Config}
	add("", f.validate())
	if f.Name == "" && slices.ContainsFunc(found, func(e *ConfigError) bool { return atTop(e) && hidesOthers(e) }) {
		f.Name = "service" // it has a name, under a wrong key or of a wrong type
	}
	for i, cf := range f.Consumers {
		place := fmt.Sprintf("consumers[%d].", i)
		sc, err := cf.consumer(f.Config)
		add(place, err)
		for j := range s.Consumers {
			if err := s.clash(&s.Consumers[j], sc); err != nil {
				add(place, err)
				break
			}
		}
		s.Consumers = append(s.Consumers, *sc)
	}
	return s, mistakes
}

func atTop(e *ConfigError) bool { return !strings.HasPrefix(e.Field, "consumers[") }

// isConsequence reports whether e, a mistake at a place, may follow from one that was
// found before: a setting is missing since its key or its value is wrong.
func isConsequence(e *ConfigError, place string, found []*ConfigError) bool {
	missing := e.Value == "" && !strings.HasPrefix(e.Reason, notURL) || strings.HasPrefix(e.Reason, "set without")
	for _, f := range found {
		beside := strings.HasPrefix(f.Field, place)
		if place == "" {
			beside = atTop(f)
		}
		if beside && missing && hidesOthers(f) || strings.HasPrefix(f.Field, e.Field) {
			return true
		}
	}
	return false
}

// hidesOthers reports whether a mistake of the decoder may be why a setting that
// something else needs is missing.
func hidesOthers(e *ConfigError) bool {
	if strings.HasPrefix(e.Reason, "unknown key") || strings.HasPrefix(e.Reason, "has a key") {
		return true
	}
	key, _, _ := strings.Cut(e.Field[strings.LastIndexByte(e.Field, '.')+1:], "[")
	return slices.Contains(neededByOthers, key)
}

var neededByOthers = []string{
	"name", "type", "nats", "consumers", "subjects", "stream_name", "consumer_group", "dead_letter", "user",
}

// serviceFile is a service file. The names of settings stand at the fields that they
// fill, and nowhere else.
type serviceFile struct {
	Config
	Consumers []consumerFile `json:"consumers"`
}

type consumerFile struct {
	Name    string       `json:"name"`
	Type    string       `json:"type"`
	NATS    natsConsumer `json:"nats"`
	Enabled *bool        `json:"enabled"`
}

type natsConsumer struct {
	ConsumerConfig
	Backoff                     // hides ConsumerConfig's, which in a file is a level too deep
	Brokers          []string   `json:"brokers"`
	User             *string    `json:"user"`
	Password         *Secret    `json:"password"`
	Token            *Secret    `json:"token"`
	CredsFile        *string    `json:"creds_file"`
	NKeyFile         *string    `json:"nkey_file"`
	TLS              *TLSConfig `json:"tls"`
	DisableReconnect *bool      `json:"disable_reconnect"`
	CreateStream     bool       `json:"create_stream_if_not_exist"`
}

// validate checks what is at the top of the file.
func (f *serviceFile) validate() error {
	errs := []error{noServer("servers", f.Servers)}
	if errs[0] == nil {
		errs = append(errs, f.Config.withDefaults().validate())
	}
	if len(f.Consumers) == 0 {
		errs = append(errs, invalid("consumers", "",
			"there are none, so that there is nothing to run; add at least one", nil))
	}
	return joined(errs...)
}

// noServer refuses a list that the file has, and that names no server: natty would look
// for one on this machine.
func noServer(field string, list []string) error {
	if list == nil || strings.Trim(strings.Join(list, ""), ", ") != "" {
		return nil
	}
	return invalid(field, "", "holds no server; give at least one, or leave it out for the default", nil)
}

// consumer checks what the file says about one consumer, and returns it even if that is
// wrong.
func (cf *consumerFile) consumer(base Config) (*ServiceConsumer, error) {
	n := &cf.NATS
	sc := &ServiceConsumer{
		Name: cf.Name, Consumer: n.ConsumerConfig, CreateStream: n.CreateStream,
		Disabled: cf.Enabled != nil && !*cf.Enabled,
	}
	sc.Consumer.Backoff = n.Backoff
	own := n.connection(base)
	if !reflect.DeepEqual(own, base) {
		sc.Config = &own
	}
	var errs []error
	if cf.Name == "" {
		errs = append(errs, invalid("name", "",
			"is missing; give the consumer a name, by which its handler is found", nil))
	}
	switch cf.Type {
	case "nats":
		errs = append(errs, under("nats.", n.validate(own, sc.Consumer)))
	case "":
		errs = append(errs, invalid("type", "", `is missing; set it to "nats"`, nil))
	default:
		errs = append(errs, invalid("type", cf.Type, `is not known; set it to "nats"`, nil))
	}
	return sc, joined(errs...)
}

// hasLogin reports whether the consumer has a login of its own.
func (n *natsConsumer) hasLogin() bool {
	return n.User != nil || n.Password != nil || n.Token != nil || n.CredsFile != nil || n.NKeyFile != nil
}

// connection returns how the consumer connects.
func (n *natsConsumer) connection(base Config) Config {
	own := base
	if n.hasLogin() {
		own.User, own.Password, own.Token = valueOf(n.User), valueOf(n.Password), valueOf(n.Token)
		own.CredsFile, own.NKeyFile = valueOf(n.CredsFile), valueOf(n.NKeyFile)
		own.Servers = base.withDefaults().Servers
		for i, s := range own.Servers { // a login in a URL would come before its own
			own.Servers[i] = serverurl.WithoutLogin(s)
		}
	}
	if n.Brokers != nil {
		own.Servers = n.Brokers
	}
	if n.TLS != nil {
		own.TLS = *n.TLS
	}
	if n.DisableReconnect != nil {
		own.DisableReconnect = *n.DisableReconnect
	}
	return own
}

// valueOf returns what p points to, or the zero value.
func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// validate checks what the consumer sets. own is its connection, of which the file's
// part is checked elsewhere.
func (n *natsConsumer) validate(own Config, cfg ConsumerConfig) error {
	filled := cfg.withDefaults(own.Name)
	var errs []error
	if n.Brokers != nil {
		err := noServer("brokers", n.Brokers)
		if err == nil {
			err = own.withDefaults().validateServers()
		}
		for _, e := range configErrors(err) {
			e.Field = strings.Replace(e.Field, "servers", "brokers", 1)
			errs = append(errs, e)
		}
	}
	if n.hasLogin() {
		errs = append(errs, own.validateLogin())
	}
	if n.CreateStream && (cfg.Stream == "" || len(cfg.Subjects) == 0) {
		errs = append(errs, invalid("create_stream_if_not_exist", "",
			"set without stream_name and subjects, which say what to make; set all three", nil))
	}
	if filled.Durable == "" && len(cfg.Subjects) == 1 && own.Name == "" {
		errs = append(errs, invalid("consumer_group", "",
			"is missing, and so is the service's name, from which it could be made; set one of them", nil))
		filled.Durable = "durable" // that it is missing is said
	}
	return joined(append(errs, filled.validate())...)
}

// clash refuses a second consumer with the name of another, or with the durable of
// another that runs beside it. Two handlers on one durable would each receive some of
// the messages.
func (s *Service) clash(old, sc *ServiceConsumer) error {
	if old.Name == sc.Name {
		return invalid("name", sc.Name, "is another consumer's too; give each a name of its own", nil)
	}
	a, b := old.Consumer.withDefaults(s.Config.Name), sc.Consumer.withDefaults(s.Config.Name)
	if old.Disabled || sc.Disabled {
		return nil
	}
	same := a.Durable == b.Durable && a.Stream == b.Stream && reflect.DeepEqual(s.configOf(old), s.configOf(sc))
	if same && (a.Stream != "" || slices.Equal(a.Subjects, b.Subjects)) {
		return invalid("nats.consumer_group", b.Durable, fmt.Sprintf(
			"is that of the consumer %q, so that each would get only some of the messages; set another",
			old.Name), nil)
	}
	return nil
}

func (s *Service) configOf(sc *ServiceConsumer) Config {
	if sc.Config != nil {
		return *sc.Config
	}
	return s.Config
}

// under puts a place before the field of every ConfigError.
func under(place string, err error) error {
	if err == nil {
		return nil
	}
	var errs []error
	for _, one := range apart(err) {
		if bad, ok := errors.AsType[*ConfigError](one); ok {
			moved := *bad
			moved.Field = place + bad.Field
			one = &moved
		}
		errs = append(errs, one)
	}
	return joined(errs...)
}

// configErrors returns the ConfigErrors that are joined in err.
func configErrors(err error) (all []*ConfigError) {
	for _, one := range apart(err) {
		if bad, ok := errors.AsType[*ConfigError](one); ok {
			all = append(all, bad)
		}
	}
	return all
}

// joined joins mistakes, of which each may be several. A single one is returned as it is.
func joined(errs ...error) error {
	var all []error
	for _, err := range errs {
		all = append(all, apart(err)...)
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

// apart returns the errors that are joined in err.
func apart(err error) []error {
	if err == nil {
		return nil
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, one := range several.Unwrap() {
			all = append(all, apart(one)...)
		}
		return all
	}
	return []error{err}
}
