-- Looks at each row: refuses what could never be delivered, and wakes a sleeping
-- relay. A trigger, not CHECKs: PostgreSQL prepares each CHECK and each WHEN anew
-- for each statement, and a transaction that inserts one event pays for it. The
-- error names the rule as the constraint that is broken.
--
-- The row has its numbers when this looks at the register asleep, which is the
-- order that the relay counts on. Under load nobody sleeps and nobody pays for
-- NOTIFY, which serialises commits. A transaction that notified cannot be
-- prepared: where two-phase commit is on, the relay looks by itself instead.
CREATE OR REPLACE FUNCTION onewrite.guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken text;
BEGIN
    -- The common row in one expression: each further one is prepared anew too.
    IF NEW.headers IS NULL AND NEW.type IS NULL AND NEW.content_type IS NULL AND NEW.payload_bytes IS NULL
            AND NEW.topic ~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' AND octet_length(NEW.topic) <= 255
            AND (octet_length(NEW.key) <= 1024) IS NOT FALSE
            AND octet_length(NEW.topic) + coalesce(octet_length(NEW.key), 0) + coalesce(octet_length(NEW.payload), 0) <= {{max_event}}
            AND NEW.id <> '00000000-0000-0000-0000-000000000000' AND pg_sequence_last_value('onewrite.asleep') <> 2 THEN
        RETURN NEW;
    END IF;
    IF octet_length(NEW.topic) > 255 OR NEW.topic !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' THEN
        broken := 'outbox_topic_is_letters_digits_and_single_dots';
    ELSIF NEW.payload IS NOT NULL AND NEW.payload_bytes IS NOT NULL THEN
        broken := 'outbox_has_one_payload_at_most';
    ELSIF NEW.id = '00000000-0000-0000-0000-000000000000' THEN
        broken := 'outbox_id_is_not_nil';
    ELSIF octet_length(NEW.key) > 1024 THEN
        broken := 'outbox_key_is_at_most_1024_bytes';
    ELSIF NEW.type IS NOT NULL AND (octet_length(NEW.type) NOT BETWEEN 1 AND 255 OR NEW.type ~ '[[:cntrl:]]') THEN
        broken := 'outbox_type_is_short_text_without_control_characters';
    ELSIF NEW.content_type IS NOT NULL AND (octet_length(NEW.content_type) NOT BETWEEN 1 AND 255
            OR NEW.content_type ~ '[[:cntrl:]]' OR strpos(NEW.content_type, '/') = 0) THEN
        broken := 'outbox_content_type_is_a_short_media_type';
    ELSIF NEW.headers IS NULL THEN
        NULL;
    ELSIF jsonb_typeof(NEW.headers) <> 'object' OR octet_length(NEW.headers::text) > 65536
            OR jsonb_path_exists(NEW.headers, 'strict $.* ? (@.type() != "string")') THEN
        broken := 'outbox_headers_are_an_object_of_strings';
    ELSIF jsonb_path_exists(NEW.headers, 'strict $.keyvalue() ? (!(@.key like_regex "^[-!#$%&''*+.^_`|~0-9A-Za-z]+$")
            || @.key like_regex "^(specversion|id|source|type|time|datacontenttype|data|data_base64|topic|partitionkey|sequence|txid|txindex|txlast|headers|content-type|(ce-|ce_|nats-|onewrite-|webhook-).*)$" flag "i")') THEN
        broken := 'outbox_header_names_are_allowed';
    ELSIF (SELECT count(*) <> count(DISTINCT lower(name)) FROM jsonb_object_keys(NEW.headers) name) THEN
        broken := 'outbox_header_names_differ_by_more_than_case';
    ELSIF jsonb_path_exists(NEW.headers, 'strict $.* ? (@ like_regex "[[:cntrl:]]")') THEN
        broken := 'outbox_header_values_have_no_control_characters';
    END IF;
    -- The headers count as JSON without spaces, as the Go library writes them.
    IF broken IS NULL AND octet_length(NEW.topic) + coalesce(octet_length(NEW.key), 0) + coalesce(octet_length(NEW.type), 0)
            + coalesce(octet_length(NEW.payload), octet_length(NEW.payload_bytes), 0)
            + (CASE WHEN coalesce(octet_length(NEW.payload), octet_length(NEW.payload_bytes)) IS NULL THEN 0 ELSE coalesce(octet_length(NEW.content_type), 0) END)
            + (CASE WHEN NEW.headers IS NULL THEN 0 ELSE octet_length(NEW.headers::text)
                - greatest(2 * (SELECT count(*) FROM jsonb_object_keys(NEW.headers)) - 1, 0) END) > {{max_event}} THEN
        broken := 'outbox_event_is_within_the_size_limit';
    END IF;
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'new row for relation "outbox" violates check constraint "%"', broken
            USING ERRCODE = 'check_violation', CONSTRAINT = broken, SCHEMA = 'onewrite', TABLE = 'outbox';
    END IF;
    IF pg_sequence_last_value('onewrite.asleep') = 2 AND current_setting('max_prepared_transactions') = '0' THEN
        PERFORM pg_notify('onewrite', '');
    END IF;
    RETURN NEW;
END$$;
