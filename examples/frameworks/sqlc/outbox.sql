-- What sqlc has to know of the outbox: the columns that an application may set.
-- The table itself is made by onewrite migrate. Only the query CreateEvent needs this.
CREATE SCHEMA onewrite;
CREATE TABLE onewrite.outbox (
    topic         text NOT NULL,
    key           text,
    payload       text,
    payload_bytes bytea,
    id            uuid NOT NULL DEFAULT gen_random_uuid(),
    type          text,
    content_type  text,
    headers       jsonb
);
