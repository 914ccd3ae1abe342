"""Prints the records of a topic up to its end, one JSON object a line, as Confluent's
own deserializers read them.

schemas.py BROKER TOPIC REGISTRY avro|json-schema
"""
import json
import sys

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.serialization import MessageField, SerializationContext

broker, topic, registry, form = sys.argv[1:]
client = SchemaRegistryClient({"url": registry})
if form == "avro":
    from confluent_kafka.schema_registry.avro import AvroDeserializer
    read = AvroDeserializer(client)
elif form == "json-schema":
    from confluent_kafka.schema_registry.json_schema import JSONDeserializer
    read = JSONDeserializer(None, schema_registry_client=client)

c = Consumer({
    "bootstrap.servers": broker, "group.id": "schemas", "isolation.level": "read_committed",
    "enable.auto.commit": False, "auto.offset.reset": "earliest", "enable.partition.eof": True,
})
partitions = c.list_topics(topic, timeout=30).topics[topic].partitions
c.assign([TopicPartition(topic, p, 0) for p in partitions])
left = set(partitions)
while left:
    m = c.poll(30)
    if m is None:
        sys.exit("nothing came within 30 s")
    if m.error():
        if m.error().name() == "_PARTITION_EOF":
            left.discard(m.partition())
            continue
        raise KafkaException(m.error())
    header = {k: v.decode() for k, v in m.headers() or []}
    print(json.dumps({
        "id": header.get("ce_id", ""), "content": header.get("content-type", ""), "key": (m.key() or b"").decode(),
        "schema": int.from_bytes(m.value()[1:5], "big") if m.value() else 0,
        "value": read(m.value(), SerializationContext(topic, MessageField.VALUE)),
    }, default=str))
c.close()
