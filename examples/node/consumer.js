// A webhook consumer that ships each order once, whatever is sent twice.
'use strict';
const { createHmac, timingSafeEqual } = require('node:crypto');
const http = require('node:http');
const { buffer } = require('node:stream/consumers');
const { Pool } = require('pg');

const { DATABASE_URL, WEBHOOK_SECRET = '', PORT = '8090', EVENT_SOURCE = '/shop' } = process.env;
const KEY = Buffer.from(WEBHOOK_SECRET.replace(/^whsec_/, ''), 'base64');
if (!WEBHOOK_SECRET.startsWith('whsec_') || KEY.length < 24) throw new Error('WEBHOOK_SECRET must be whsec_ and base64');
const pool = new Pool({ connectionString: DATABASE_URL, connectionTimeoutMillis: 5000, query_timeout: 10000 });
pool.on('error', (err) => console.error(err.message)); // an idle connection is lost: no reason to end
pool.on('connect', (db) => db.on('error', () => {})); // nor is one in use: its query says it

function genuine(headers, body) {
  const { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': given = '' } = headers;
  const mac = createHmac('sha256', KEY).update(`${id}.${timestamp}.`).update(body).digest('base64');
  const want = Buffer.from(`v1,${mac}`);
  const signatures = given.split(' ').map((text) => Buffer.from(text)); // several while a key is rotated
  if (!signatures.some((got) => got.length === want.length && timingSafeEqual(got, want))) return false;
  const fresh = Math.abs(Date.now() / 1000 - Number(timestamp)) <= 5 * 60; // false for NaN
  // ce- headers are not signed: an old request must not pass under a new id.
  return fresh && headers['ce-id'] === id && headers['ce-source'] === EVENT_SOURCE;
}

async function shipOnce(event, order, customer) {
  const db = await pool.connect();
  try {
    await db.query('BEGIN');
    const marked = 'INSERT INTO seen (source, id) VALUES ($1, $2) ON CONFLICT DO NOTHING';
    if ((await db.query(marked, [EVENT_SOURCE, event])).rowCount === 1) { // else it is a repeat
      await db.query('INSERT INTO shipments (order_id, customer) VALUES ($1, $2)', [order, customer]);
    }
    await db.query('COMMIT');
    db.release();
  } catch (err) {
    db.release(err); // closes the connection, which rolls back
    throw err;
  }
}

async function answer(req) {
  if (!(Number(req.headers['content-length']) <= 2 << 20)) return 413;
  const body = await buffer(req); // throws if it is cut off
  if (!genuine(req.headers, body)) return 401;
  try {
    const { order, customer } = JSON.parse(body) ?? {};
    await shipOnce(req.headers['ce-id'], order, customer);
    return 204; // only here, after the commit
  } catch (err) {
    console.error(err.message);
    // SQLSTATE 22 and 23: this event is at fault, and is parked. Else: not now, it comes again.
    return err instanceof SyntaxError || /^2[23]/.test(err.code) ? 422 : 503;
  }
}

const server = http.createServer((req, res) => {
  answer(req).then((status) => res.writeHead(status).end(), () => res.destroy());
});
server.listen(Number(PORT), '127.0.0.1', () => console.log(`listening on 127.0.0.1:${server.address().port}`));
