"""A Kafka client that produces, consumes, and tells what it asked the broker: requests by API that were
answered, and all that were sent. One that was sent as it left has no answer.
"""

import collections
import json
import sys

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.protocol.parser import KafkaProtocol

MESSAGES = 300
sent, answered = collections.Counter(), collections.Counter()


def count(method, counter, api_of):
    original = getattr(KafkaProtocol, method)

    def counting(self, *arguments, **options):
        result = original(self, *arguments, **options)
        counter[api_of(arguments, result)] += 1
        return result

    setattr(KafkaProtocol, method, counting)


def name(message, suffix):
    return type(message).__name__.removesuffix(suffix)


count("send_request", sent, lambda arguments, _: name(arguments[0], "Request"))
count("_process_response", answered, lambda _, result: name(result[1], "Response"))

broker = f"127.0.0.1:{sys.argv[1]}"
admin = KafkaAdminClient(bootstrap_servers=broker)
admin.create_topics([NewTopic(name="orders", num_partitions=1, replication_factor=1)])
admin.close()
producer = KafkaProducer(bootstrap_servers=broker, acks=1)
for i in range(MESSAGES):
    producer.send("orders", b"order %d" % i, partition=0).get(timeout=20)
producer.close()
# Several fetches.
consumer = KafkaConsumer(
    bootstrap_servers=broker, fetch_max_wait_ms=100, max_partition_fetch_bytes=2000
)
partition = TopicPartition("orders", 0)
consumer.assign([partition])
consumer.seek(partition, 0)
read = 0
while read < MESSAGES:
    read += sum(len(records) for records in consumer.poll(timeout_ms=1000).values())
consumer.close()
print(json.dumps({"read": read, "sent": sent, "answered": answered}), flush=True)
