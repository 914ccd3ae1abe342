-- The producer's database, beside what `onewrite migrate` makes there.
CREATE TABLE orders (id text PRIMARY KEY, customer text NOT NULL);
GRANT INSERT ON orders TO shop_app;
