# The commands of the house. `make test` is what CI runs; `make check` is what to
# run before a commit. Both need Go; the rest says what it misses.

GO          ?= go
P           ?= 2
SEED        ?=
SEEDS       ?=
BENCH       ?= .
PKG         ?= ./adapter/postgres ./torture/storm ./adapter/kafka ./...
FRAMEWORKS   = examples/frameworks
STATICCHECK  = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK  = golang.org/x/vuln/cmd/govulncheck@v1.9.0
PLATFORMS    = linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

# The race detector is C: it needs cgo and a compiler, the program does not.
define RACE_READY
{ [ "$$($(GO) env CGO_ENABLED)" = 1 ] && command -v "$$($(GO) env CC | cut -d ' ' -f 1)" >/dev/null; } || { \
echo "the race detector needs cgo and a C compiler; install gcc (Debian: apt-get install gcc libc6-dev), unset CGO_ENABLED, or run: make test-fast" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help demo shop build test test-fast servers check fmt vet lint cross modules vuln sim bench bench-debezium torture torture-all torture-kill torture-fence torture-sinks torture-traps torture-rows torture-points torture-mutants clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## An order service with five consumers, first with dual writes, then with onewrite (needs Go only)
	@CGO_ENABLED=0 $(GO) run -trimpath ./cmd/onewrite demo

shop: ## The whole picture on real servers: PostgreSQL, RabbitMQ and Kafka under load and faults, counted
	@scripts/install-servers.sh || echo "make shop: going on with the servers that are there" >&2
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/onewrite ./examples/shop/blueprint && exec bin/blueprint

build: ## Build bin/onewrite
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/onewrite

# -count=1: Go's test cache cannot see that a server changed. A server that is
# there must be used, so the tests that need it may not skip; where one is
# missing they do, and the script has said so. The simulation's 2,000 worlds run
# without the race detector first, a part of them with it after. FRAMEWORKS is a
# module of its own: its dependencies are those of applications, not ours. The tests
# wait for servers more than they compute; more packages at a time than two cores can
# carry are slower tests, not a faster run. The packages that take longest go first.
test: ## Install the servers that the tests need and run everything under the race detector
	@if scripts/install-servers.sh; then ONEWRITE_REQUIRE_SERVERS=1; \
	elif [ "$$CI" = true ]; then exit 1; \
	else echo "make test: the tests that need what is missing are skipped" >&2; ONEWRITE_REQUIRE_SERVERS=; fi; \
	export ONEWRITE_REQUIRE_SERVERS; \
	$(RACE_READY) && $(GO) test -count=1 -timeout 10m ./pipeline -run '^TestSimulation$$' && $(GO) test -race -count=1 -p $(P) -timeout 60m $(PKG) \
	$(if $(filter ./...,$(PKG)),&& cd $(FRAMEWORKS) && exec $(GO) test -race -count=1 -p $(P) -timeout 10m ./...)

test-fast: ## Run the short tests with the servers that are there, without the race detector
	@$(GO) test -short -p $(P) -timeout 10m $(PKG)

servers: ## Install the servers of the tests (Debian as root), or list what is missing
	@scripts/install-servers.sh

check: fmt vet lint cross modules ## Formatting, vet, lint, six platforms without cgo, the rules of the house
	@$(GO) test -count=1 .

fmt:
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "not formatted; run: gofmt -w" $$files >&2; exit 1; }

vet:
	@$(GO) vet ./...
	@cd $(FRAMEWORKS) && $(GO) vet ./...

lint:
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else $(GO) run $(STATICCHECK) ./...; fi

cross:
	@for p in $(PLATFORMS); do \
	echo "build $$p"; CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) build ./... || exit 1; done

modules:
	@$(GO) mod verify && cd $(FRAMEWORKS) && $(GO) mod verify
	@$(GO) mod tidy -diff && cd $(FRAMEWORKS) && $(GO) mod tidy -diff

vuln: ## Look the dependencies up in Go's vulnerability database (needs the network)
	@$(GO) run $(GOVULNCHECK) ./...

sim: ## Run the simulation: SEEDS=n worlds (default 10000), or the one world SEED=n
	@$(GO) test -count=1 -timeout 60m ./pipeline -run '^TestSimulation$$' -v \
	$(if $(SEED),-sim.seed=$(SEED),-sim.seeds=$(or $(SEEDS),10000))

bench: ## Run the benchmarks: PKG=./adapter/nats BENCH=Append
	@$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count=1 -p 1 -timeout 60m $(PKG)

bench-debezium: ## Debezium with Kafka beside onewrite; fetches both with Maven (about 20 minutes)
	@ONEWRITE_DEBEZIUM=$$(scripts/install-debezium.sh) && export ONEWRITE_DEBEZIUM && \
	$(GO) test -run '^$$' -bench '^BenchmarkDebezium$$' -count=1 -timeout 60m ./bench

# The storms are bounded by their events. What was as expected is kept below TORTURE
# and not run again for the same program, so that an interrupted one goes on.
TORTURE     ?= torture-runs
torture: torture-all ## All storms, with one table at the end (about two hours)
torture-kill: ## A million events on PostgreSQL and 200,000 on SQLite through 100 kills each
torture-fence: ## Copies that are frozen and cut off, servers of the bus that die, the network, lost answers
torture-sinks: ## Kafka, Redis, RabbitMQ, PostgreSQL, MariaDB and SQLite behind onewrite, killed as it is
torture-traps: ## The bus lost, put back, damaged, without room
torture-rows: ## Row changes of PostgreSQL: killed, altered, and what the server is silent about (a quarter of an hour)
torture-points: ## A kill, a failure and a stall at every fail point
torture-mutants: ## Planted bugs, each of which a law has to name
torture-all torture-kill torture-fence torture-sinks torture-traps torture-rows torture-points torture-mutants: torture-%:
	@$(GO) run ./torture $* --dir $(TORTURE) $(if $(SEED),--seed $(SEED))

clean: ## Remove what the build and the tests made here
	rm -rf bin coverage.out
	find . -name '*.test' -type f -not -path './.git/*' -delete
