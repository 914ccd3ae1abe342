-- Events that are to be sent later. The relay moves them into the outbox, many at a
-- time, when they are due: the outbox itself needs no index on a time, and no row in
-- it has to stay.
CREATE TABLE onewrite.scheduled (
    n             bigint      NOT NULL DEFAULT nextval('onewrite.seq'),
    deliver_at    timestamptz NOT NULL,
    id            uuid        NOT NULL DEFAULT gen_random_uuid(),
    topic         text        NOT NULL,
    key           text,
    type          text,
    content_type  text,
    headers       jsonb,
    payload       text,
    payload_bytes bytea,
    CONSTRAINT scheduled_event_is_valid
        CHECK (onewrite.valid(id, topic, key, type, content_type, headers, payload, payload_bytes, {{max_event}})),
    CONSTRAINT scheduled_for_a_time CHECK (isfinite(deliver_at))
);
CREATE INDEX scheduled_due ON onewrite.scheduled (deliver_at, n);
CREATE INDEX scheduled_id ON onewrite.scheduled (id);
CREATE TRIGGER wake AFTER INSERT ON onewrite.scheduled FOR EACH STATEMENT
    WHEN (pg_sequence_last_value('onewrite.asleep') = 2) EXECUTE FUNCTION onewrite.wake();

-- Takes an event back before it is due: true if it was there. Whoever knows its id
-- may do so; no other right on the table is needed.
CREATE OR REPLACE FUNCTION onewrite.cancel(id uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$BEGIN DELETE FROM onewrite.scheduled s WHERE s.id = $1; RETURN FOUND; END$$;
REVOKE ALL ON FUNCTION onewrite.cancel(uuid) FROM PUBLIC;

-- The imports that read a table once, and are done.
CREATE TABLE IF NOT EXISTS onewrite.imported (name text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());
