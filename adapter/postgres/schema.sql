-- The outbox of onewrite, layout version 1. Needs PostgreSQL 13 or newer.
CREATE SCHEMA IF NOT EXISTS onewrite;

-- The order of events. CACHE 1: a session that kept numbers back would break it.
CREATE SEQUENCE onewrite.seq CACHE 1;

-- Sequences as registers: no row, so nothing to vacuum, and not rolled back.
CREATE SEQUENCE onewrite.slot MINVALUE 0;   -- the leaf that inserts go to
CREATE SEQUENCE onewrite.asleep;            -- 2: the relay sleeps and wants a NOTIFY
CREATE SEQUENCE onewrite.epoch;             -- grows with what the relay reads
CREATE SEQUENCE onewrite.freed MINVALUE 0;  -- the greatest number among what was confirmed and truncated
SELECT setval('onewrite.slot', 0), setval('onewrite.asleep', 1), setval('onewrite.epoch', 1), setval('onewrite.freed', 0);

-- What a row must be to be delivered. One function instead of a CHECK a rule:
-- PostgreSQL parses and prepares each CHECK anew for each statement, which made an
-- INSERT three times as dear. The error names the rule as its constraint.
CREATE FUNCTION onewrite.valid(id uuid, topic text, key text, type text, content_type text, headers jsonb, payload text, payload_bytes bytea, max_event int)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    broken text;
BEGIN
    -- The common row in one expression: each further one is prepared anew too.
    IF headers IS NULL AND type IS NULL AND content_type IS NULL AND payload_bytes IS NULL
            AND topic ~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' AND octet_length(topic) <= 255
            AND (octet_length(key) <= 1024) IS NOT FALSE
            AND octet_length(topic) + coalesce(octet_length(key), 0) + coalesce(octet_length(payload), 0) <= max_event
            AND id <> '00000000-0000-0000-0000-000000000000' THEN
        RETURN true;
    END IF;
    IF octet_length(topic) > 255 OR topic !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' THEN
        broken := 'outbox_topic_is_letters_digits_and_single_dots';
    ELSIF payload IS NOT NULL AND payload_bytes IS NOT NULL THEN
        broken := 'outbox_has_one_payload_at_most';
    ELSIF id = '00000000-0000-0000-0000-000000000000' THEN
        broken := 'outbox_id_is_not_nil';
    ELSIF octet_length(key) > 1024 THEN
        broken := 'outbox_key_is_at_most_1024_bytes';
    ELSIF type IS NOT NULL AND (octet_length(type) NOT BETWEEN 1 AND 255 OR type ~ '[[:cntrl:]]') THEN
        broken := 'outbox_type_is_short_text_without_control_characters';
    ELSIF content_type IS NOT NULL AND (octet_length(content_type) NOT BETWEEN 1 AND 255
            OR content_type ~ '[[:cntrl:]]' OR strpos(content_type, '/') = 0) THEN
        broken := 'outbox_content_type_is_a_short_media_type';
    ELSIF headers IS NULL THEN
        NULL;
    ELSIF octet_length(headers::text) > 65536 THEN
        broken := 'outbox_headers_have_at_most_65536_bytes';
    ELSIF jsonb_typeof(headers) <> 'object' OR jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")') THEN
        broken := 'outbox_headers_are_an_object_of_strings';
    ELSIF jsonb_path_exists(headers, 'strict $.keyvalue() ? (!(@.key like_regex "^[-!#$%&''*+.^_`|~0-9A-Za-z]+$")
            || @.key like_regex "^(specversion|id|source|type|time|datacontenttype|data|data_base64|topic|partitionkey|sequence|txid|txindex|txlast|headers|content-type|(ce-|ce_|nats-|onewrite-|webhook-).*)$" flag "i")') THEN
        broken := 'outbox_header_names_are_allowed';
    ELSIF (SELECT count(*) <> count(DISTINCT lower(name)) FROM jsonb_object_keys(headers) name) THEN
        broken := 'outbox_header_names_differ_by_more_than_case';
    ELSIF jsonb_path_exists(headers, 'strict $.* ? (@ like_regex "[[:cntrl:]]")') THEN
        broken := 'outbox_header_values_have_no_control_characters';
    END IF;
    -- The headers count as JSON without spaces, as the Go library writes them.
    IF broken IS NULL AND octet_length(topic) + coalesce(octet_length(key), 0) + coalesce(octet_length(type), 0)
            + coalesce(octet_length(payload), octet_length(payload_bytes), 0)
            + (CASE WHEN coalesce(octet_length(payload), octet_length(payload_bytes)) IS NULL THEN 0 ELSE coalesce(octet_length(content_type), 0) END)
            + (CASE WHEN headers IS NULL THEN 0 ELSE octet_length(headers::text)
                - greatest(2 * (SELECT count(*) FROM jsonb_object_keys(headers)) - 1, 0) END) > max_event THEN
        broken := 'outbox_event_is_within_the_size_limit';
    END IF;
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'new row for relation "outbox" violates check constraint "%"', broken
            USING ERRCODE = 'check_violation', CONSTRAINT = broken, SCHEMA = 'onewrite', TABLE = 'outbox';
    END IF;
    RETURN true;
END$$;

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
    payload_bytes bytea,
    CONSTRAINT outbox_event_is_valid
        CHECK (onewrite.valid(id, topic, key, type, content_type, headers, payload, payload_bytes, {{max_event}}))
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

-- Wakes a sleeping relay. Under load nobody sleeps and nobody pays for NOTIFY,
-- which serialises commits. A transaction that notified cannot be prepared: where
-- two-phase commit is on, the relay looks by itself instead.
CREATE FUNCTION onewrite.wake() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN
    IF current_setting('max_prepared_transactions') = '0' THEN PERFORM pg_notify('onewrite', ''); END IF;
    RETURN NULL;
END$$;
CREATE TRIGGER wake AFTER INSERT ON onewrite.outbox FOR EACH STATEMENT
    WHEN (pg_sequence_last_value('onewrite.asleep') = 2) EXECUTE FUNCTION onewrite.wake();

-- Lets a relay that does not own the tables keep the block ranges summarised.
CREATE FUNCTION onewrite.summarize() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
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
