-- The tables whose row changes are read from the log, and the slot that reads them.
CREATE TABLE onewrite.captured (
    source   text   NOT NULL,
    rel      oid    NOT NULL,
    name     text   NOT NULL,          -- schema.table
    member   oid    NOT NULL,          -- of pg_publication_rel: another one after a table was taken out and put back
    identity "char" NOT NULL,          -- pg_class.relreplident
    wanted   int    NOT NULL DEFAULT 0, -- snapshots asked for
    finished int    NOT NULL DEFAULT 0, -- snapshots made
    PRIMARY KEY (source, rel)
);
CREATE TABLE onewrite.log (
    source  text   PRIMARY KEY,
    slot    text   NOT NULL,
    began   pg_lsn NOT NULL,           -- where the slot was made
    idle    pg_lsn NOT NULL,           -- up to where the slot may have moved without an event
    publication oid NOT NULL,
    system  bigint NOT NULL,
    bus_id  text   NOT NULL
);
