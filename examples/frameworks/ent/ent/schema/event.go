package schema

import (
	"entgo.io/ent"
	"entgo.io/ent/dialect/entsql"
	"entgo.io/ent/schema"
	"entgo.io/ent/schema/field"

	"github.com/onewrite/onewrite/outbox"
)

// Event is the outbox as a model, for those who want to see its INSERT in ent's
// hooks. Publish checks more and says it better; this leaves it to the table. It
// has none of the columns that the application's role may not set.
type Event struct{ ent.Schema }

// Annotations name the table, and keep ent's migration away from it: it is made by
// onewrite migrate. Its schema is named where the client is made.
func (Event) Annotations() []schema.Annotation {
	return []schema.Annotation{entsql.Table("outbox"), entsql.Skip()}
}

// Fields are the columns. The id is made here and not by the database: ent asks
// the database to return an id that it does not know, and the application's role
// may not read the outbox.
func (Event) Fields() []ent.Field {
	return []ent.Field{
		field.String("id").DefaultFunc(outbox.NewID),
		field.String("topic"),
		field.String("key").Optional(),
		field.String("payload").Optional(), // text; bytes that are none need payload_bytes
	}
}
