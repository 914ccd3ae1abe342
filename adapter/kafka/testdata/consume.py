"""Prints the records of a topic up to its end, one JSON object a line, by librdkafka.

consume.py BROKER TOPIC read_committed|read_uncommitted
"""
import base64
import json
import sys

from confluent_kafka import Consumer, KafkaException, TopicPartition

broker, topic, level = sys.argv[1:]
c = Consumer({
    "bootstrap.servers": broker, "group.id": "librdkafka", "isolation.level": level,
    "enable.auto.commit": False, "auto.offset.reset": "earliest", "enable.partition.eof": True,
})
partitions = c.list_topics(topic, timeout=30).topics[topic].partitions
c.assign([TopicPartition(topic, p, 0) for p in partitions])
left = set(partitions)


def text(b):
    return None if b is None else base64.b64encode(b).decode()


while left:
    m = c.poll(30)
    if m is None:
        sys.exit("nothing came within 30 s")
    if m.error():
        if m.error().name() == "_PARTITION_EOF":
            left.discard(m.partition())
            continue
        raise KafkaException(m.error())
    print(json.dumps({
        "partition": m.partition(), "key": text(m.key()), "value": text(m.value()),
        "headers": [[k, text(v)] for k, v in m.headers() or []],
    }))
c.close()
