package conn

import (
	"cmp"
	"errors"
	"slices"

	"github.com/nats-io/nats.go"
)

// chainHandlers adds natty's handlers to the caller's.
func (cn *Conn) chainHandlers(opts *nats.Options) {
	opts.AsyncErrorCB = cn.chainErrHandler(opts.AsyncErrorCB)
	// What a server says while nats.go connects is not why that connection is lost later.
	opts.ConnectedCB, opts.ReconnectedCB = cn.forgetting(opts.ConnectedCB), cn.forgetting(opts.ReconnectedCB)
	onLoss, older := opts.DisconnectedErrCB, opts.DisconnectedCB // natty's shadows the older one
	opts.DisconnectedErrCB = func(nc *nats.Conn, err error) {
		if err != nil {
			reason := cmp.Or(cn.revoked, err) // to nats.go it is an EOF
			cn.Link.setReason(reason)
			cn.notifyError(reason) // once for each loss, news or not
		}
		switch {
		case onLoss != nil:
			onLoss(nc, err)
		case older != nil:
			older(nc)
		}
	}
}

// forgetting returns a handler of a new connection, which then calls the caller's.
func (cn *Conn) forgetting(caller nats.ConnHandler) nats.ConnHandler {
	return func(nc *nats.Conn) {
		cn.revoked = nil
		if caller != nil {
			caller(nc)
		}
	}
}

// chainErrHandler returns an error handler that informs natty, then calls the caller's.
func (cn *Conn) chainErrHandler(caller nats.ErrHandler) nats.ErrHandler {
	return func(nc *nats.Conn, sub *nats.Subscription, err error) {
		cn.onAsyncError(err)
		if caller != nil {
			caller(nc, sub, err)
		}
	}
}

// loginErrors are those at which the server ends the connection.
var loginErrors = []error{
	nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired, nats.ErrAuthorization,
}

func (cn *Conn) onAsyncError(err error) {
	if cn.closing.Err() != nil {
		return
	}
	if slices.ContainsFunc(loginErrors, func(e error) bool { return errors.Is(err, e) }) {
		cn.revoked = err
	}
	news := cn.Link.setReason(err) // before those who learn of it here look at Health
	if r, ok := refusalOf(err); ok {
		if !r.Subscribe {
			cn.fail(r.Subject, err)
		}
		news = cn.Link.refuse(r) && news
	}
	if news {
		cn.notifyError(err)
		cn.log.Warn("natty: reported by the connection", "error", err)
	}
}
