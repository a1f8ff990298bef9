// Package nattytest runs real NATS servers inside a test: single servers, clusters of
// three, and a proxy in front of any of them that cuts, freezes, delays or refuses
// connections. It needs no nats-server binary, no container and no fixed port, so tests
// that use it can run in parallel, and so can test processes. It knows nothing of
// natty: any client can use it.
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
// To lose an acknowledgement on its way to the client, put a [Proxy] in front of the
// server:
//
//	link := nattytest.Proxy(t, node.URL())
//	… connect to link.URL() …
//	link.FreezeReplies() // requests arrive, replies are held
//	… publish, and wait until the server has stored the message …
//	link.Cut() // closes the connection and loses the acknowledgement
//	link.Thaw()
//
// The Cleanup of the test stops its servers, clusters and proxies, after every cleanup
// that the test registers later. It leaves neither a goroutine nor a file behind.
// [Start] is for programs that have no test.
package nattytest
