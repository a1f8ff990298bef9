package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

// limits is the configuration.
type limits struct {
	Version int `json:"version"` // how often it was changed
	Rate    int `json:"rate"`    // what is configured: ten for each version, so that a wrong one can be told
}

// key is where it is.
const key = "limits"

// change changes the configuration. Should two operators do it at the same time, both changes are made, one on top of the other.
func change(ctx context.Context, settings *natty.Bucket[limits]) error {
	return settings.Modify(ctx, key, func(l limits) (limits, error) {
		l.Version++
		l.Rate += 10
		return l, nil
	})
}

// service reads the configuration for each of its requests.
type service struct {
	client   *natty.Client
	settings *natty.Bucket[limits]
	copied   *natty.Cache[limits]
	stop     context.CancelFunc
	serving  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	version int
	reads   int
	missing int // reads that found none, or a wrong one, or an older one than before
	oldest  time.Duration
}

// start starts a service.
func start(ctx context.Context, cfg natty.Config, bucket, name string, n *network) (*service, error) {
	cfg.Name = name
	client, err := connect(ctx, cfg, natty.WithNATSOptions(nats.SetCustomDialer(n)))
	if err != nil {
		return nil, err
	}
	s := &service{client: client}
	if s.settings, err = natty.NewBucket[limits](client, natty.BucketConfig{Bucket: bucket}); err == nil {
		s.copied, err = s.settings.Cached(ctx) // waits until it is complete
	}
	if err != nil {
		return nil, errors.Join(err, client.Close(context.WithoutCancel(ctx)))
	}
	ctx, s.stop = context.WithCancel(ctx)
	s.serving.Go(func() { s.serve(ctx) })
	return s, nil
}

// close is called once.
func (s *service) close() error {
	s.stop()
	s.serving.Wait()
	return s.client.Close(context.Background())
}

// serve handles a request every millisecond.
func (s *service) serve(ctx context.Context) {
	for wait(ctx, func() bool { return true }) == nil {
		s.handle()
	}
}

// handle handles a request. A service that must not use a configuration from yesterday would look at Age too.
func (s *service) handle() {
	l, ok := s.copied.Get(key)
	age := s.copied.Age()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if !ok || l.Version < s.version || l.Rate != 10*l.Version {
		s.missing++
	}
	s.version, s.oldest = l.Version, max(s.oldest, age)
}

// ask asks the server for the configuration, and does not wait for long.
func (s *service) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err := s.settings.Get(ctx, key)
	return err
}

func (s *service) sees() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// network is between the services and the server, and can be cut.
type network struct {
	mu    sync.Mutex // guards what follows
	cut   bool
	conns []net.Conn
}

// Dial implements nats.CustomDialer.
func (n *network) Dial(network, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut {
		return nil, errors.New("the network is cut")
	}
	conn, err := net.DialTimeout(network, address, time.Second)
	if err == nil {
		n.conns = append(n.conns, conn)
	}
	return conn, err
}

// set cuts the network, or mends it.
func (n *network) set(whole bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = !whole
	if n.cut {
		for _, conn := range n.conns {
			_ = conn.Close() // it may have been closed
		}
		n.conns = nil
	}
}
