-- name: CreateOrder :exec
INSERT INTO orders (id, customer, document) VALUES ($1, $2, $3);

-- name: CreateEvent :exec
-- The application's role may not read the outbox: so :exec, and no RETURNING.
INSERT INTO onewrite.outbox (id, topic, key, payload) VALUES ($1, $2, $3, $4);
