// Package natty is an opinionated NATS JetStream client: a small interface over nats.go that does the parts which
// every service writes again and gets wrong somewhere.
//
//	in:   server → consume → dispatch → your handler → settle → server
//	out:  you → publish → server → acknowledged, or an error
//
// What it guarantees, and what that rests on:
//
// Nothing is lost silently. A nil error from [Client.Publish] means that the server acknowledged the message; an error
// says whether it may be stored all the same ([PublishError]). A message leaves a consumer only because its handler
// accepted it, or because its copy is safe in a dead-letter stream ([ConsumerConfig].DeadLetter; without one, because the handler
// said [Permanent]).
//
// Nothing stops silently. A lost connection is made again for ever, and [Client.Process] survives it, as it survives
// restarts of servers, changes of leaders and missed heartbeats. What cannot be survived is returned as an error, what was
// mended is reported ([ConsumerConfig].OnError, the log, [Client.Health]).
//
// Delivery is at least once. A message comes again when its process or connection ends before the verdict
// reaches the server. Publishing is exactly once inside the stream's duplicate window; docs/guarantees.md says where that
// ends.
//
// Plain publish and subscribe, requests, micro services and stream administration are nats.go's: [Client.Conn] and
// [Client.JetStream] hand out what natty runs on.
package natty
