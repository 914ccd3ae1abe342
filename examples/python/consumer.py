"""A webhook consumer that ships each order once, whatever is sent twice."""
import base64
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg

DATABASE_URL, SECRET = os.environ["DATABASE_URL"], os.environ["WEBHOOK_SECRET"]
SOURCE = os.environ.get("EVENT_SOURCE", "/shop")  # the one source of this endpoint's events
KEY = base64.b64decode(SECRET.removeprefix("whsec_"))
if not SECRET.startswith("whsec_") or len(KEY) < 24:
    raise SystemExit("WEBHOOK_SECRET must be whsec_ and the base64 of 24 bytes or more")


def genuine(headers, body):
    event, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    want = b"v1," + base64.b64encode(hmac.digest(KEY, f"{event}.{timestamp}.".encode("latin-1") + body, "sha256"))
    given = headers.get("webhook-signature", "").encode("latin-1").split()  # several while a key is rotated
    known = any(hmac.compare_digest(want, signature) for signature in given)
    fresh = timestamp.isdecimal() and abs(time.time() - float(timestamp)) <= 5 * 60
    # ce- headers are not signed: an old request must not pass under a new id.
    return known and fresh and headers.get("ce-id") == event and headers.get("ce-source") == SOURCE


def ship_once(event, order, customer):
    # The block commits at its end, or rolls back if it raises. In earnest take a psycopg_pool.
    with psycopg.connect(DATABASE_URL, connect_timeout=5) as db:
        mark = db.execute("INSERT INTO seen (source, id) VALUES (%s, %s) ON CONFLICT DO NOTHING", (SOURCE, event))
        if mark.rowcount == 1:  # else it is a repeat
            db.execute("INSERT INTO shipments (order_id, customer) VALUES (%s, %s)", (order, customer))


class Consumer(BaseHTTPRequestHandler):
    protocol_version, timeout = "HTTP/1.1", 30  # keeps connections open, but not for ever

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        if not 0 <= length <= 2 << 20:
            return self.send_error(413)
        body = self.rfile.read(length)
        if len(body) < length or not genuine(self.headers, body):
            return self.send_error(401)
        try:
            placed = json.loads(body)
            ship_once(self.headers["ce-id"], placed["order"], placed["customer"])
        except (ValueError, KeyError, TypeError, psycopg.DataError, psycopg.IntegrityError):
            return self.send_error(422)  # this event is at fault: it is parked
        except psycopg.Error:
            return self.send_error(503)  # not now: it comes again
        self.send_response(204)  # only here, after the commit
        self.end_headers()


ThreadingHTTPServer.request_queue_size = 128  # 5 is less than onewrite sends at once
server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8090"))), Consumer)
print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
