package inbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
)

// consumerDB is the database of a consumer that counts orders.
func consumerDB() (db *sql.DB, remove func()) {
	dir, err := os.MkdirTemp("", "inbox")
	if err != nil {
		log.Fatal(err)
	}
	db, err = sql.Open("sqlite", "file:"+filepath.Join(dir, "billing.db")+"?_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE bill (customer TEXT PRIMARY KEY, orders INT NOT NULL)`); err != nil {
		log.Fatal(err)
	}
	return db, func() {
		_ = db.Close()
		_ = os.RemoveAll(dir)
	}
}

// bill is the effect of an event, in the transaction that it gets.
func bill(ctx context.Context, tx *sql.Tx, e onewrite.Event) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO bill VALUES (?, 1) ON CONFLICT (customer) DO UPDATE SET orders = orders + 1`, e.Key)
	return err
}

func orders(db *sql.DB, customer string) (n int) {
	if err := db.QueryRow(`SELECT orders FROM bill WHERE customer = ?`, customer).Scan(&n); err != nil {
		log.Fatal(err)
	}
	return n
}

// An event that comes twice has its effect once.
func ExampleInbox_Apply() {
	ctx := context.Background()
	db, remove := consumerDB()
	defer remove()
	box := inbox.New(inbox.SQLite, "billing")
	if err := box.Migrate(ctx, db); err != nil { // or: onewrite migrate --inbox
		log.Fatal(err)
	}
	e := onewrite.Event{ID: "e-1", Source: "shop", Topic: "order.placed", Key: "alice"}
	for range 2 {
		outcome, err := box.Apply(ctx, db, inbox.Message{Event: e}, func(ctx context.Context, tx *sql.Tx) error {
			return bill(ctx, tx, e)
		})
		fmt.Println(outcome, err)
	}
	fmt.Println(orders(db, "alice"), "order")
	// Output:
	// applied <nil>
	// duplicate <nil>
	// 1 order
}

// A batch is one transaction, with one round trip for all of its marks.
func ExampleInbox_ApplyAll() {
	ctx := context.Background()
	db, remove := consumerDB()
	defer remove()
	box := inbox.New(inbox.SQLite, "billing", inbox.Ordered())
	if err := box.Migrate(ctx, db); err != nil {
		log.Fatal(err)
	}
	var batch []inbox.Message
	for i := range 3 {
		batch = append(batch, inbox.Message{Event: onewrite.Event{ID: fmt.Sprint("e-", i), Source: "shop", Key: "alice", Seq: fmt.Sprint(i)}})
	}
	fmt.Println(box.ApplyAll(ctx, db, batch[:2], bill))
	fmt.Println(box.ApplyAll(ctx, db, batch, bill))
	fmt.Println(orders(db, "alice"), "orders")
	// Output:
	// [applied applied] <nil>
	// [duplicate duplicate applied] <nil>
	// 3 orders
}

// For those who hold the transaction themselves: mark first, then do what is new.
func ExampleInbox_Mark() {
	ctx := context.Background()
	db, remove := consumerDB()
	defer remove()
	box := inbox.New(inbox.SQLite, "billing")
	if err := box.Migrate(ctx, db); err != nil {
		log.Fatal(err)
	}
	e := onewrite.Event{ID: "e-1", Source: "shop", Key: "alice"}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	outcomes, err := box.Mark(ctx, tx, inbox.Message{Event: e})
	if err != nil {
		log.Fatal(err)
	}
	if outcomes[0] == inbox.Applied {
		if err := bill(ctx, tx, e); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(outcomes, tx.Commit())
	// Output: [applied] <nil>
}

// The receiver of a webhook of onewrite.
func ExampleHTTP() {
	ctx := context.Background()
	db, remove := consumerDB()
	defer remove()
	box := inbox.New(inbox.SQLite, "billing")
	if err := box.Migrate(ctx, db); err != nil {
		log.Fatal(err)
	}
	// In earnest: inbox.Secret(os.Getenv("WEBHOOK_SECRET")).
	handler, err := inbox.HTTP(box.Receiver(db, bill), inbox.Unsigned(), inbox.From("shop"))
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()

	for range 2 { // what onewrite sends, twice
		r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader(`{"order":"o-1"}`))
		if err != nil {
			log.Fatal(err)
		}
		for name, value := range map[string]string{
			"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "e-1", "ce-source": "/shop",
			"ce-type": "order.placed", "ce-topic": "order.placed", "ce-partitionkey": "alice",
		} {
			r.Header.Set(name, value)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			log.Fatal(err)
		}
		_ = answer.Body.Close()
		fmt.Println(answer.Status)
	}
	fmt.Println(orders(db, "alice"), "order")
	// Output:
	// 204 No Content
	// 204 No Content
	// 1 order
}
