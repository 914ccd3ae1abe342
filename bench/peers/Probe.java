import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * What BenchmarkDebezium sees of Kafka. Makes a topic of one partition where it is missing, says ready, and then
 *
 * <pre>
 * Probe ends BROKER TOPIC TARGET   looks at the end of the topic, and prints a line "microseconds records" when
 *                                  the first record is there, and when TARGET records are
 * Probe rows BROKER TOPIC          reads the topic, and prints a line "microseconds id" for each row, for ever
 * </pre>
 */
public class Probe {
  public static void main(String[] args) throws Exception {
    TopicPartition topic = new TopicPartition(args[2], 0);
    try (Admin admin = Admin.create(Map.<String, Object>of("bootstrap.servers", args[1]))) {
      if (!admin.listTopics().names().get().contains(topic.topic())) {
        admin.createTopics(List.of(new NewTopic(topic.topic(), 1, (short) 1))).all().get();
      }
    }
    Map<String, Object> config = Map.of("bootstrap.servers", args[1], "auto.offset.reset", "earliest", "enable.auto.commit", "false", "isolation.level", "read_committed", "max.poll.records", "5000");
    try (KafkaConsumer<String, String> consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer())) {
      consumer.assign(List.of(topic));
      consumer.position(topic);
      System.out.println("ready");
      if (args[0].equals("ends")) {
        ends(consumer, topic, Long.parseLong(args[3]));
      } else {
        rows(consumer);
      }
    }
  }

  static void ends(KafkaConsumer<String, String> consumer, TopicPartition topic, long target) throws InterruptedException {
    boolean first = true;
    for (long n = 0; n < target; Thread.sleep(40)) { // asking more often would take part in what is measured
      n = consumer.endOffsets(List.of(topic)).get(topic);
      if (n >= target || n > 0 && first) {
        System.out.println(micros() + " " + n);
        first = false;
      }
    }
  }

  static void rows(KafkaConsumer<String, String> consumer) {
    final String before = "\"after\":{\"id\":";
    while (true) {
      StringBuilder lines = new StringBuilder();
      Iterable<ConsumerRecord<String, String>> records = consumer.poll(Duration.ofMillis(500));
      long now = micros();
      for (ConsumerRecord<String, String> r : records) {
        int i = r.value() == null ? -1 : r.value().indexOf(before);
        if (i >= 0) {
          i += before.length();
          lines.append(now).append(' ').append(r.value(), i, r.value().indexOf(',', i)).append('\n');
        }
      }
      System.out.print(lines);
      System.out.flush();
    }
  }

  static long micros() {
    Instant now = Instant.now();
    return now.getEpochSecond() * 1_000_000 + now.getNano() / 1000;
  }
}
