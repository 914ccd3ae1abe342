"""Takes messages of a queue with pika and prints each as one line of JSON.

Usage: consume.py URL QUEUE COUNT [OFFSET]    OFFSET is for a stream: first, or a number
"""
import base64
import json
import os
import sys

import pika

url, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
offset = sys.argv[4] if len(sys.argv) > 4 else None


def text(value):
    return value if isinstance(value, (str, int, type(None))) else repr(value)


channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
channel.basic_qos(prefetch_count=100)
arguments = {"x-stream-offset": int(offset) if offset.isdigit() else offset} if offset else None
seen = 0
for method, p, body in channel.consume(queue, arguments=arguments, inactivity_timeout=30):
    if method is None:
        sys.exit("nothing came")
    print(json.dumps({
        "routing_key": method.routing_key,
        "message_id": p.message_id,
        "type": p.type,
        "content_type": p.content_type,
        "app_id": p.app_id,
        "timestamp": p.timestamp,
        "delivery_mode": p.delivery_mode,
        "headers": {k: text(v) for k, v in (p.headers or {}).items()},
        "body": base64.b64encode(body).decode(),
    }))
    channel.basic_ack(method.delivery_tag)
    seen += 1
    if seen == count:
        break
if offset:  # what was fetched too much cannot be given back to a stream
    sys.stdout.flush()
    os._exit(0)
channel.cancel()
channel.connection.close()
