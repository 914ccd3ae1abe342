-- The tables of the order service. seq counts the orders of a customer, so that
-- everybody can see whether they arrive in order. A refusal is written down after the
-- transaction of its order was rolled back.
CREATE TABLE items (item text PRIMARY KEY, units bigint NOT NULL);
CREATE TABLE orders (n bigint PRIMARY KEY, customer text NOT NULL, seq bigint NOT NULL, item text NOT NULL,
    quantity bigint NOT NULL, cents bigint NOT NULL, paid boolean NOT NULL DEFAULT false);
CREATE TABLE customers (customer text PRIMARY KEY, orders bigint NOT NULL,
    last_order bigint NOT NULL, last_cents bigint NOT NULL, closed boolean NOT NULL DEFAULT false);
CREATE TABLE refusals (n bigint PRIMARY KEY, reason text NOT NULL);

-- What the service may do. The right to publish comes from `onewrite migrate`.
GRANT SELECT, INSERT, UPDATE ON items, orders, customers, refusals TO shop_app;
