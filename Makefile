# Every target sets up what it needs (Debian 12 with a Rust toolchain; packages as root or through
# sudo). What is made goes to build/, or to a folder in /var/tmp where build/ would be closed to the
# unprivileged user who runs the servers: `scripts/build-dir` tells.

.PHONY: help demo test test-long install package lint bench profile coverage clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: ## show on a private cluster what auditing a table records
	@scripts/setup
	@scripts/pg-versions 15
	@scripts/build 15
	@demo/demo

test: ## every kind of test on PostgreSQL 15; SQL contract and crash on 16, 17, 18 (PG=N: all on N)
	@PG=$(PG) scripts/test

test-long: ## the same with the tests that take long
	@PG=$(PG) scripts/test --long

install: ## build, and install into the PostgreSQL of PG_CONFIG (default: pg_config in PATH)
	@PG_CONFIG=$(PG_CONFIG) scripts/install

package: ## packages for Debian, tarballs, and an image volume, in build/dist (PG=N: for one version)
	@scripts/setup
	@scripts/pg-versions $(PG)
	@scripts/build $(PG)
	@scripts/dist $(PG)

lint: ## rustfmt and clippy, warnings denied
	@scripts/setup
	@scripts/pg-versions $(PG)
	@scripts/lint $(PG)

bench: ## compare with the bare table and with a PL/pgSQL trigger
	@scripts/setup
	@scripts/pg-versions 15
	@scripts/build 15
	@bench/bench

profile: ## record anew what scripts/package has the compiler optimise for (all versions; half an hour)
	@scripts/profile $(PG)

coverage: ## lines of Rust that the tests on PostgreSQL 15 reach
	@scripts/setup
	@scripts/pg-versions 15
	@scripts/coverage

clean: ## remove what was made, the private PostgreSQL trees included
	@rm -rf "$$(scripts/build-dir)"
