-- The tables whose row changes are read from the log, and the slot that reads them.
CREATE TABLE IF NOT EXISTS onewrite.captured (
    source   text   NOT NULL,
    rel      oid    NOT NULL,
    name     text   NOT NULL,          -- schema.table
    member   oid    NOT NULL,          -- of pg_publication_rel: another one after a table was taken out and put back
    altered  xid    NOT NULL,          -- the version of the publication's row: another one after ALTER PUBLICATION
    identity "char" NOT NULL,          -- pg_class.relreplident
    wanted   int    NOT NULL DEFAULT 0, -- the snapshot asked for; a number is not given twice
    finished int    NOT NULL DEFAULT 0, -- and the one made last
    PRIMARY KEY (source, rel)
);
ALTER TABLE onewrite.captured
    ADD COLUMN IF NOT EXISTS filter text NOT NULL DEFAULT '', -- the condition of a snapshot's rows, as configured; '': all
    ADD COLUMN IF NOT EXISTS once   text NOT NULL DEFAULT '', -- the condition of one that was asked for with its own
    ADD COLUMN IF NOT EXISTS asked  int  NOT NULL DEFAULT 0,  -- and which one that was
    ADD COLUMN IF NOT EXISTS key    text NOT NULL DEFAULT '?', -- the numbers of the columns of its events' key; '?': not known
    ADD COLUMN IF NOT EXISTS keyed  pg_lsn NOT NULL DEFAULT '0/0', -- a snapshot of later heals what rows before were told by
    ADD COLUMN IF NOT EXISTS shape  text NOT NULL DEFAULT '[]', -- the table's columns, for when it is gone: JSON
    ADD COLUMN IF NOT EXISTS columns text NOT NULL DEFAULT ''; -- the rules of columns: for the table, as configured when migrate ran
-- Tables that are captured no more: the log may have changes of them still.
CREATE TABLE IF NOT EXISTS onewrite.released (
    source text   NOT NULL,
    rel    oid    NOT NULL,
    name   text   NOT NULL,
    key    text   NOT NULL,            -- as in onewrite.captured
    shape  text   NOT NULL,
    columns text  NOT NULL,
    until  pg_lsn NOT NULL,            -- when that was
    PRIMARY KEY (source, rel)
);
CREATE TABLE IF NOT EXISTS onewrite.log (
    source  text   PRIMARY KEY,
    slot    text   NOT NULL,
    began   pg_lsn NOT NULL,           -- where the slot was made
    idle    pg_lsn NOT NULL,           -- up to where the slot may have moved without an event
    read    pg_lsn NOT NULL,           -- what the bus had when idle was written
    publication oid NOT NULL,          -- 0: migrate made it anew, and so shall the slot be
    gap     text   NOT NULL DEFAULT '', -- why the slot was made anew, as long as the bus has nothing of it
    system  bigint NOT NULL,
    bus_id  text   NOT NULL
);
