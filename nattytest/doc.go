// Package nattytest runs real NATS servers inside a test: single servers, a cluster of three, and a proxy in front of any of
// them that cuts, freezes, delays and refuses. It needs no binary, no container and no fixed port, so tests that use it can
// run in parallel, in as many processes as there are packages.
//
//	func TestOrdersAreKeptWhenTheServerRestarts(t *testing.T) {
//		node := nattytest.Server(t)
//		nc, err := nats.Connect(node.URL())
//		if err != nil {
//			t.Fatal(err)
//		}
//		t.Cleanup(nc.Close)
//		…
//		if err := node.Restart(); err != nil { // the same port, the same streams
//			t.Fatal(err)
//		}
//	}
//
// To lose an acknowledgement on the way back, put a [Proxy] in front of the server:
//
//	link := nattytest.Proxy(t, node.URL())
//	… connect to link.URL() …
//	link.FreezeReplies() // what the client sends arrives, what the server answers is held
//	… publish, and wait until the server has stored it …
//	link.Cut() // the connection is gone, and the acknowledgement with it
//	link.Thaw()
//
// A server, a cluster or a proxy that was made with a [testing.TB] ends in its Cleanup, after every cleanup that the test
// registers later, and leaves neither a goroutine nor a file behind. [Start] is for programs that have no test around them.
package nattytest
