// Package email sends a mail for each event, by SMTP.
//
// # The mail
//
// Sender, recipients, subject, headers and body are templates of Go over the
// event, see [Config]. A field that an event does not have is an error and never
// "<no value>", and so is one that is null where it would be printed. What comes
// from an event can neither add a header nor a recipient.
//
// The Message-ID is made of the event's id, its source and the destination, Date is
// the event's time, and the bytes of the mail follow from the event alone: a repeat
// is the same mail. SMTP has no other means against repeats. A mail is sent twice
// when the server has taken it and the answer was lost, or when onewrite ends before
// it has stored that the answer came; most mail stores show such a pair as one.
//
// A mail goes to all of its recipients or to none of them: if the server refuses one
// it is not sent.
//
// # The answers
//
//	250 to the text        the server has the mail; whether it reaches the person
//	                       is between that server and the next
//	5xx to a recipient     ErrRejected: the address; 530 and 503 are an outage
//	5xx to the text        ErrRejected: the mail
//	552 or a SIZE exceeded ErrRejected: too large
//	5xx to the sender      outage: every mail would be refused
//	5xx to the login       outage: user or password in url
//	4xx to a recipient     tried again; Answered() is true, as others may pass: a
//	or to the text         server that does not know us yet (greylisting). With the
//	                       pause that the answer names, else 3 min, of its key alone
//	4.3.x, 4xx to the      outage: the server has no room or no time; the pause that
//	sender                 it names is kept, if it names one
//	421, no whole answer   outage
//
// One connection is kept from Write to Write. There is no retry in here; a connection
// that the server closed while nothing was under way is made anew.
//
// # What is guarded
//
// With smtp:// the connection is encrypted by STARTTLS or not used; the server's
// certificate is verified. Unless StartTLS is off, a password is sent only through
// TLS or to this machine itself.
package email
