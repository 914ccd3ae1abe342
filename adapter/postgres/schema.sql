-- The outbox of onewrite, layout version 1. Needs PostgreSQL 13 or newer.
CREATE SCHEMA IF NOT EXISTS onewrite;

-- The order of events. CACHE 1: a session that kept numbers back would break it.
CREATE SEQUENCE onewrite.seq CACHE 1;

-- Sequences as registers: no row, so nothing to vacuum, and not rolled back.
CREATE SEQUENCE onewrite.slot MINVALUE 0;   -- the leaf that inserts go to
CREATE SEQUENCE onewrite.asleep;            -- 2: the relay sleeps and wants a NOTIFY
CREATE SEQUENCE onewrite.epoch;             -- grows with what the relay reads
SELECT setval('onewrite.slot', 0), setval('onewrite.asleep', 1), setval('onewrite.epoch', 1);

-- INSERT-only. Rows are never updated or deleted; a leaf is truncated when every
-- row in it is where it needs to be.
CREATE TABLE onewrite.outbox (
    seq           bigint      NOT NULL DEFAULT nextval('onewrite.seq'),
    xid           xid8        NOT NULL DEFAULT pg_current_xact_id(),
    slot          smallint    NOT NULL DEFAULT pg_sequence_last_value('onewrite.slot')::smallint,
    created       timestamptz NOT NULL DEFAULT clock_timestamp(),
    id            uuid        NOT NULL DEFAULT gen_random_uuid(),
    topic         text        NOT NULL,
    key           text,
    type          text,
    content_type  text,
    headers       jsonb,
    payload       text,
    payload_bytes bytea
) PARTITION BY LIST (slot);
CREATE INDEX outbox_xid ON onewrite.outbox (xid);
-- The heap is in the order of seq but for a few pages: a block range index finds
-- the next piece of a backlog and costs an INSERT nothing.
CREATE INDEX outbox_seq ON onewrite.outbox USING brin (seq) WITH (pages_per_range = 16);
{{leaves}}
-- The buses that read this outbox: a new or foreign one is noticed.
CREATE TABLE onewrite.bus (
    source            text PRIMARY KEY,
    bus_id            text NOT NULL,
    system_identifier bigint NOT NULL,
    database          oid NOT NULL,
    valid_from        bigint NOT NULL,  -- positions of an earlier epoch count for nothing
    since             timestamptz NOT NULL DEFAULT now()
);

{{guard}}CREATE TRIGGER guard BEFORE INSERT ON onewrite.outbox FOR EACH ROW EXECUTE FUNCTION onewrite.guard();

-- Lets a relay that does not own the tables keep the block ranges summarised.
CREATE FUNCTION onewrite.summarize() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS
$$SELECT brin_summarize_new_values(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
  WHERE a.amname = 'brin' AND c.relkind = 'i' AND c.relnamespace = 'onewrite'::regnamespace$$;
REVOKE ALL ON FUNCTION onewrite.summarize() FROM PUBLIC;

-- For any language: SELECT onewrite.publish('order.placed', 'alice', '{"n":1}').
-- It returns the event's id. An untyped literal means text.
CREATE FUNCTION onewrite.publish(topic text, key text, payload text) RETURNS uuid LANGUAGE plpgsql AS
$$DECLARE made uuid := gen_random_uuid(); BEGIN INSERT INTO onewrite.outbox (id, topic, key, payload) VALUES (made, $1, $2, $3); RETURN made; END$$;
CREATE FUNCTION onewrite.publish(topic text, key text, payload jsonb) RETURNS uuid LANGUAGE plpgsql AS
$$DECLARE made uuid := gen_random_uuid(); BEGIN INSERT INTO onewrite.outbox (id, topic, key, payload) VALUES (made, $1, $2, $3::text); RETURN made; END$$;
CREATE FUNCTION onewrite.publish(topic text, key text, payload bytea) RETURNS uuid LANGUAGE plpgsql AS
$$DECLARE made uuid := gen_random_uuid(); BEGIN INSERT INTO onewrite.outbox (id, topic, key, payload_bytes) VALUES (made, $1, $2, $3); RETURN made; END$$;

-- The registers may be read by whoever may use the schema; only the relay moves them.
GRANT SELECT ON SEQUENCE onewrite.slot, onewrite.asleep TO PUBLIC;

CREATE TABLE onewrite.migration (version int PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now());
INSERT INTO onewrite.migration (version) VALUES (1);
