module github.com/natty-go/natty/bench

go 1.26.0

require (
	github.com/natty-go/natty v0.0.0
	github.com/nats-io/nats-server/v2 v2.15.2
	github.com/nats-io/nats.go v1.55.0
)

replace github.com/natty-go/natty => ../
