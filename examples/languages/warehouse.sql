-- The consumer's database: its marks, and the effect.
CREATE TABLE seen (source text, id text, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (source, id));
CREATE TABLE shipments (order_id text NOT NULL, customer text NOT NULL);
GRANT INSERT ON seen, shipments TO warehouse_app;
