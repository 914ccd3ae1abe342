"""Produces records with keys, one a line of standard input, by librdkafka's murmur2.

produce.py BROKER TOPIC
"""
import sys

from confluent_kafka import Producer

p = Producer({"bootstrap.servers": sys.argv[1], "partitioner": "murmur2_random"})
for line in sys.stdin:
    p.produce(sys.argv[2], key=line.rstrip("\n").encode(), value=b"x")
if p.flush(30):
    sys.exit("not all was sent")
