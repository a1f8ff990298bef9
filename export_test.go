package natty

import "time"

// WithPinnedTTL shortens the time after which a silent active instance of an Exclusive consumer is followed by another.
func (cfg ConsumerConfig) WithPinnedTTL(ttl time.Duration) ConsumerConfig {
	cfg.pinnedTTL = ttl
	return cfg
}
