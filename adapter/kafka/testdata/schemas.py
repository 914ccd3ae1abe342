"""Prints the records of a topic up to its end, one JSON object a line, as Confluent's
own deserializers read them.

schemas.py BROKER TOPIC REGISTRY avro|json-schema|protobuf

Protobuf is read by a class that protoc makes of the first message of the newest version,
as a consumer that is built today has it.
"""
import importlib
import json
import pathlib
import sys
import tempfile

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
elif form == "protobuf":
    from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer
    from google.protobuf.json_format import MessageToDict
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as made:
        pathlib.Path(made, "rows.proto").write_text(client.get_latest_version(topic + "-value").schema.schema_str, encoding="utf-8")
        known = pathlib.Path(protoc.__file__).parent / "_proto"  # those that come with protoc
        if protoc.main(["protoc", f"-I{made}", f"-I{known}", f"--python_out={made}", "rows.proto"]) != 0:
            sys.exit("protoc does not take the schema")
        sys.path.insert(0, made)
        module = importlib.import_module("rows_pb2")
    first = next(iter(module.DESCRIPTOR.message_types_by_name))
    parse = ProtobufDeserializer(getattr(module, first), {"use.deprecated.format": False})

    def read(data, ctx):
        m = parse(data, ctx)
        return None if m is None else MessageToDict(m)

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
