package work

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/history"
)

// Redriving is the Op of a letter that is put back, and of a walk through all letters.
const Redriving = "redrive"

// maxRedrives is how often a letter is put back: some are deadly for ever.
const maxRedrives = 2

// redrive puts some dead letters back, again and again.
func redrive(ctx context.Context, w *worker) error {
	w.each(ctx, 3*time.Second, func(int) {
		brief, cancel := context.WithTimeout(ctx, attempt)
		defer cancel()
		from := history.Now()
		n, err := w.c.Redrive(brief, DeadLetters, func(l natty.DeadLetter) bool {
			pause(brief, 20*time.Millisecond) // what it sends is bounded
			if l.Redrives >= maxRedrives || rand.IntN(3) > 0 {
				return false
			}
			w.log.Add(history.Event{What: history.Call, Op: Redriving, ID: string(l.Data), Seq: l.StoredAt})
			return true
		})
		e := history.Event{What: history.Return, Op: Redriving, From: from, N: int64(n), Text: OK}
		if err != nil {
			e.Text = err.Error() // letters stay while the durable is away
		}
		w.log.Add(e)
	})
	w.drained(ctx)
	return nil
}
