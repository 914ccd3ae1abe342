CREATE TABLE orders (
    id       text  PRIMARY KEY,
    customer text  NOT NULL,
    document bytea NOT NULL
);
