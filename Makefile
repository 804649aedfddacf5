# make help says what there is.
SHELL := /bin/bash
PG_MAJOR ?= 15
PG_CONFIG ?= /usr/lib/postgresql/$(PG_MAJOR)/bin/pg_config
PREFIX ?= /usr/local
DESTDIR ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
CARGO ?= cargo
PROFILE ?= dev
TARGET := $(or $(CARGO_TARGET_DIR),target)
BUILD ?= $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
export PGRX_PG_CONFIG_PATH ?= $(PG_CONFIG)
# The server that the tests copy.
export PG_CONFIG
# Two servers at a time are what a small machine takes.
export RUST_TEST_THREADS ?= 2

# The library is built for one major version.
FEATURES := $(if $(filter-out 15,$(PG_MAJOR)),--no-default-features --features pg-tde/pg$(PG_MAJOR))

PACKAGES := postgresql-$(PG_MAJOR) postgresql-contrib postgresql-server-dev-$(PG_MAJOR) \
	gcc clang libclang-dev pkg-config python3 python3-pip make bzip2 \
	sqlite3 libsqlite3-dev tcl tcl-dev zlib1g-dev patch xz-utils valgrind \
	softhsm2 opensc strace gnutls-bin openssl libengine-pkcs11-openssl nginx-light osslsigncode

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-aarch64 test-sqlite-suite bench soak lint typecheck libraries install install-files install-sqlite-files install-pkcs11-files clean-scratch

help:
	@echo "make setup     install what building and testing need (Debian packages; asks for root where needed)"
	@echo "make demo      show 336,776 flights in an encrypted tablespace of the system's PostgreSQL"
	@echo "make test      set up, build, run all tests on real servers; PG_MAJOR=17 for another version than 15"
	@echo "make soak      the long versions of the tests"
	@echo "make test-sqlite-suite   SQLite's own test suite in full on encrypted files (half an hour)"
	@echo "make test-aarch64        the page ciphers on AArch64, in an emulator"
	@echo "make bench     encrypted against plain, side by side; QUICK=1 for a first impression in five minutes"
	@echo "make lint      rustfmt, clippy with warnings as errors"
	@echo "make typecheck type-check the extension for PostgreSQL 16, 17 and 18"
	@echo "make install   extension where PG_CONFIG says, tde into PREFIX/bin; DESTDIR is honoured"

# Asks dpkg first, so that a second run needs neither network nor root.
setup:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}\n' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "setup: installing" $$missing; \
	  as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  $$as_root apt-get -q update && $$as_root apt-get -q install -y --no-install-recommends $$missing; \
	else echo "setup: all Debian packages are there: $(PACKAGES)"; fi
	@command -v $(CARGO) >/dev/null || { echo "setup: no cargo; install Rust with rustup (rust-toolchain.toml names the version)" >&2; exit 1; }
	@echo "setup: $$($(CARGO) --version), $$($(PG_CONFIG) --version)"

# The whole workspace, so that every target of this file builds the dependencies with the same features, once.
build:
	$(CARGO) build --locked --workspace $(FEATURES) --profile $(PROFILE)

demo: setup build
	@BUILD=$(BUILD) python3 examples/flights/demo.py

test: setup build
	$(CARGO) test --locked --workspace $(FEATURES)

# The same tests, longer: sixty crashes instead of twenty, more kills in the middle of key changes, PostgreSQL's isolation suite.
soak: setup build
	TDE_SOAK=1 $(CARGO) test --locked --workspace $(FEATURES) --test pg -- --include-ignored
	TDE_SOAK=1 $(CARGO) test --locked --workspace $(FEATURES) --test sqlite
	TDE_SOAK=1 $(CARGO) test --locked --workspace $(FEATURES) --test hsm

# A part of soak; make test runs a short form.
test-sqlite-suite: setup build
	TDE_SOAK=1 $(CARGO) test --locked --workspace $(FEATURES) --test sqlite suite:: -- --nocapture

# Needs the standard library of that target (rustup target add $(AARCH64), or Debian's libstd-rust-dev:arm64 with Debian's rustc).
AARCH64 := aarch64-unknown-linux-gnu
test-aarch64:
	@for p in aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu qemu-aarch64-static:qemu-user-static; do \
	  command -v $${p%%:*} >/dev/null || { echo "test-aarch64: no $${p%%:*}: install $${p##*:} (and libc6-dev-arm64-cross)" >&2; exit 1; }; \
	done
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu" \
	$(CARGO) test --locked --target $(AARCH64) -p page-cipher \
	  --test kernels --test hctr2 --test gcm_siv --test xts --test pg_page --test no_alloc

# Everything beside what it is compared with, and a report of it: in docs/benchmarks, of a quick run in target/bench/report.
# Release builds; the test profile leaves out the linker's optimisation.
bench: setup
	$(MAKE) build libraries PROFILE=release
	@mkdir -p target/bench; rm -f target/bench/*.json
	$(CARGO) run --locked --release -q -p page-cipher --example page_speed -- --json target/bench/kernels.json
	$(CARGO) run --locked --release -q -p page-cipher --example constant_time
	$(if $(QUICK),,$(CARGO) run --locked --release -q --manifest-path page-cipher/compare/Cargo.toml -- --json target/bench/libraries.json)
	@set -e; for bench in keys pkcs11 sqlite postgres report; do \
	  QUICK=$(QUICK) $(CARGO) bench --locked --workspace $(FEATURES) --bench $$bench; \
	done

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

# PostgreSQL versions whose headers are not installed.
typecheck: setup
	pg-tde/typecheck.sh 16 17 18

install: build libraries install-files install-sqlite-files install-pkcs11-files

# What other programs load, once more by itself: cargo gives packages that are built together the union of their features, and what the
# tde command needs (AWS-LC for the HSM's objects, tokio) has no place in a server's or an application's process.
libraries: setup
	$(CARGO) build --locked -p pg-tde -p tde-sqlite -p tde-preload $(FEATURES) --profile $(PROFILE)
	@for library in libpg_tde.so libtde_sqlite.so libtde_preload.so; do \
	  if nm "$(BUILD)/$$library" | grep -q -e aws_lc -e 5tokio; then echo "$$library contains AWS-LC or tokio" >&2; exit 1; fi; \
	done

# Copies what was built. By rename: a running server keeps the file that it has mapped.
install-files:
	@set -e; test -f "$(BUILD)/libpg_tde.so" || { echo "nothing built in $(BUILD): run 'make build'" >&2; exit 1; }; \
	put() { mkdir -p "$$(dirname "$$3")"; install -m $$1 "$$2" "$$3.new"; mv -f "$$3.new" "$$3"; }; \
	lib="$(DESTDIR)$$($(PG_CONFIG) --pkglibdir)"; ext="$(DESTDIR)$$($(PG_CONFIG) --sharedir)/extension"; \
	put 755 "$(BUILD)/libpg_tde.so" "$$lib/pg_tde.so"; \
	put 644 pg-tde/pg_tde.control "$$ext/pg_tde.control"; \
	for f in pg-tde/sql/pg_tde--*.sql; do put 644 "$$f" "$$ext/$${f##*/}"; done; \
	put 755 "$(BUILD)/tde" "$(DESTDIR)$(PREFIX)/bin/tde"; \
	put 755 "$(BUILD)/tde-pkcs11-agent" "$(DESTDIR)$(PREFIX)/bin/tde-pkcs11-agent"; \
	put 755 "$(BUILD)/libtde_preload.so" "$(DESTDIR)$(PREFIX)/lib/libtde_preload.so"; \
	echo "installed pg_tde into $$lib and $$ext, tde into $(DESTDIR)$(PREFIX)/bin"

# The SQLite VFS: library, header, pkg-config file.
install-sqlite-files:
	@set -e; test -f "$(BUILD)/libtde_sqlite.so" || { echo "nothing built in $(BUILD): run 'make build'" >&2; exit 1; }; \
	put() { mkdir -p "$$(dirname "$$3")"; install -m $$1 "$$2" "$$3.new"; mv -f "$$3.new" "$$3"; }; \
	put 755 "$(BUILD)/libtde_sqlite.so" "$(DESTDIR)$(PREFIX)/lib/libtde_sqlite.so"; \
	put 644 "$(BUILD)/libtde_sqlite.a" "$(DESTDIR)$(PREFIX)/lib/libtde_sqlite.a"; \
	put 644 sqlite-vfs/include/tde_sqlite.h "$(DESTDIR)$(PREFIX)/include/tde_sqlite.h"; \
	pc="$$(mktemp)"; trap 'rm -f "$$pc"' EXIT; \
	sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@VERSION@|$(VERSION)|g' sqlite-vfs/tde_sqlite.pc.in >"$$pc"; \
	put 644 "$$pc" "$(DESTDIR)$(PREFIX)/lib/pkgconfig/tde_sqlite.pc"; \
	echo "installed libtde_sqlite, tde_sqlite.h and tde_sqlite.pc below $(DESTDIR)$(PREFIX)"

# The HSM for programs that speak PKCS#11, and an example of how p11-kit finds it.
install-pkcs11-files:
	@set -e; test -f "$(BUILD)/libtde_pkcs11.so" || { echo "nothing built in $(BUILD): run 'make build'" >&2; exit 1; }; \
	put() { mkdir -p "$$(dirname "$$3")"; install -m $$1 "$$2" "$$3.new"; mv -f "$$3.new" "$$3"; }; \
	put 755 "$(BUILD)/libtde_pkcs11.so" "$(DESTDIR)$(PREFIX)/lib/libtde_pkcs11.so"; \
	conf="$$(mktemp)"; trap 'rm -f "$$conf"' EXIT; sed -e 's|@PREFIX@|$(PREFIX)|g' pkcs11-module/tde.module.in >"$$conf"; \
	put 644 "$$conf" "$(DESTDIR)$(PREFIX)/share/doc/tde/tde.module"; \
	echo "installed libtde_pkcs11.so below $(DESTDIR)$(PREFIX)"

# Removes what failed tests left for inspection.
clean-scratch:
	rm -rf /var/tmp/tde-tests-$$(id -u)
