module github.com/natty-go/natty/examples

go 1.26.0

require (
	github.com/natty-go/natty v0.0.0
	github.com/nats-io/nats.go v1.55.0
)

replace github.com/natty-go/natty => ../
