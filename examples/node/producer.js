// Places orders: the order and its event in one transaction, by plain SQL.
//
//   DATABASE_URL=postgres://shop_app:…@127.0.0.1/shop node producer.js 9
//
// Every third customer's card is declined after both rows were written: the
// order is rolled back, and its event with it.
'use strict';
const { randomUUID } = require('node:crypto');
const { Client } = require('pg');

const CUSTOMERS = ['alice', 'bob', 'Zoë'];

class Declined extends Error {}

// charge stands for whatever may fail before the commit.
function charge(number) {
  if (number % 3 === 2) throw new Declined();
}

async function placeOrder(db, order, customer, number) {
  await db.query('BEGIN');
  try {
    await db.query('INSERT INTO orders (id, customer) VALUES ($1, $2)', [order, customer]);
    // The key gives the order of events; the payload arrives byte for byte. No
    // RETURNING: this role may insert events and read none.
    await db.query('INSERT INTO onewrite.outbox (topic, key, payload) VALUES ($1, $2, $3)',
      ['order.placed', customer, JSON.stringify({ order, customer })]);
    charge(number);
    await db.query('COMMIT');
  } catch (err) {
    await db.query('ROLLBACK');
    throw err;
  }
}

async function main() {
  // One connection for the whole transaction: with a Pool take pool.connect(),
  // since each pool.query() may run on another one.
  const db = new Client({ connectionString: process.env.DATABASE_URL });
  await db.connect();
  try {
    for (let number = 0; number < Number(process.argv[2] ?? 9); number++) {
      const order = randomUUID();
      try {
        await placeOrder(db, order, CUSTOMERS[Math.floor(number / 3) % 3], number);
        console.log('committed', order);
      } catch (err) {
        if (!(err instanceof Declined)) throw err;
        console.log('rolled back', order);
      }
    }
  } finally {
    await db.end();
  }
}

main();
