package dispatch

// ExpectRedelivery makes Push compare every delivery with the held messages, for as long
// as it holds those of now. The counts of a durable that was recreated or reset start
// again at 1.
func (q *Queue) ExpectRedelivery() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for m := range q.allLocked() {
		if !m.repeatable {
			m.repeatable = true
			q.repeatable++
		}
	}
}

// findLocked returns the held delivery of the same message, unless it was returned.
func (q *Queue) findLocked(like *Message) *Message {
	for m := range q.allLocked() {
		if m.Delivery.Sequence == like.Delivery.Sequence && m.Epoch == like.Epoch && !m.returned {
			return m
		}
	}
	return nil
}
