#!/usr/bin/env bash
# Fetches Kafka with Connect, and Debezium's connector for PostgreSQL, into the
# cache folder, and prints the folder: what BenchmarkDebezium runs beside onewrite.
# With everything there it ends at once. It needs Maven and a JDK of 17 or later.
#
# Usage: ONEWRITE_DEBEZIUM=$(scripts/install-debezium.sh)
set -euo pipefail

KAFKA_VERSION=4.3.0 # what this Debezium is built with
DEBEZIUM_VERSION=3.6.1.Final
LOG4J_VERSION=2.25.4

# The same folder as in install-servers.sh, for no server.
if [ -n "${ONEWRITE_CACHE:-}" ]; then cache=$ONEWRITE_CACHE
elif [ "$(id -u)" = 0 ]; then cache=/var/cache/onewrite
else cache=${XDG_CACHE_HOME:-$HOME/.cache}/onewrite
fi
dir=$cache/debezium-$DEBEZIUM_VERSION-kafka-$KAFKA_VERSION

say() { echo "install-debezium: $*" >&2; }

for name in java javac mvn; do
  command -v "$name" >/dev/null 2>&1 && continue
  say "$name is not installed; on Debian: apt-get install default-jdk-headless maven"
  exit 1
done

if [ ! -d "$dir" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  dependency() { echo "<dependency><groupId>$1</groupId><artifactId>$2</artifactId><version>$3</version></dependency>"; }
  {
    echo '<project><modelVersion>4.0.0</modelVersion><groupId>onewrite</groupId><artifactId>peers</artifactId><version>1</version><packaging>pom</packaging><dependencies>'
    for name in kafka_2.13 connect-runtime connect-json; do dependency org.apache.kafka "$name" "$KAFKA_VERSION"; done
    for name in log4j-slf4j-impl log4j-core; do dependency org.apache.logging.log4j "$name" "$LOG4J_VERSION"; done
    echo '</dependencies></project>'
  } >"$work/pom.xml"
  say "fetching Kafka $KAFKA_VERSION and Debezium $DEBEZIUM_VERSION"
  mvn -q -B -f "$work/pom.xml" dependency:copy-dependencies -DoutputDirectory="$work/lib" >&2
  mvn -q -B -f "$work/pom.xml" dependency:unpack -DoutputDirectory="$work/plugins" \
    -Dartifact="io.debezium:debezium-connector-postgres:$DEBEZIUM_VERSION:tar.gz:plugin" >&2
  chmod a+rx "$work"
  mv "$work" "$dir" # in one step: a broken download leaves nothing half done
fi
echo "$dir"
