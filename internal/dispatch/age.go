package dispatch

import "time"

// Oldest returns when the message began to run that has run for longest; zero if none
// runs.
func (q *Queue) Oldest() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running.n == 0 {
		return time.Time{}
	}
	return q.running.head.Begun
}
