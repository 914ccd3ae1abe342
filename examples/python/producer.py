"""Places orders: the order and its event in one transaction, by plain SQL.

    DATABASE_URL=postgres://shop_app:…@127.0.0.1/shop python3 producer.py 9

Every third customer's card is declined after both rows were written: the order
is rolled back, and its event with it.
"""
import json
import os
import sys
import uuid

import psycopg

CUSTOMERS = ["alice", "bob", "Zoë"]


class Declined(Exception):
    """The card was declined: there is no order."""


def charge(number):
    """Stands for whatever may fail before the commit."""
    if number % 3 == 2:
        raise Declined


def place_order(db, order, customer, number):
    with db.transaction():  # COMMIT at the end of the block, ROLLBACK if it raises
        db.execute("INSERT INTO orders (id, customer) VALUES (%s, %s)", (order, customer))
        # The key gives the order of events; the payload arrives byte for byte. No
        # RETURNING: this role may insert events and read none.
        db.execute(
            "INSERT INTO onewrite.outbox (topic, key, payload) VALUES (%s, %s, %s)",
            ("order.placed", customer, json.dumps({"order": order, "customer": customer})),
        )
        charge(number)


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as db:
        for number in range(count):
            order = str(uuid.uuid4())
            try:
                place_order(db, order, CUSTOMERS[number // 3 % 3], number)
                print("committed", order)
            except Declined:
                print("rolled back", order)


if __name__ == "__main__":
    main()
