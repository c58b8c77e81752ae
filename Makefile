# Neso's four commands. Each installs what it lacks from Debian's packages, by name, and says so.
#
#   make up          build, start the datacenter on this machine, print what to type next
#   make down        stop it (instances too)
#   make test        every test there is, ending with one line: N passed, N failed
#   make clean-data  remove the datacenter from this machine: instances, images, certificates, settings

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build up down clean-data test packages test-packages

# Root is needed for containers, not for compiling. Who is not root and has no sudo is told by what needs it.
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
PROFILE ?= release
TARGET := $(or $(CARGO_TARGET_DIR),target)
NESO := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/neso

BUILD_PACKAGES := gcc libc6-dev pkg-config libseccomp-dev
RUN_PACKAGES := btrfs-progs busybox-static ca-certificates iproute2 mmdebstrap nftables openssh-client
TEST_PACKAGES := bind9 bind9-dnsutils curl etcd-server keepalived knot nodejs npm nsd openssl prometheus prometheus-alertmanager qemu-system-x86

help:
	@sed -n 's/^#   //p' Makefile

packages:
	@SUDO="$(SUDO)" tests/packages $(BUILD_PACKAGES) $(RUN_PACKAGES)

test-packages: packages
	@SUDO="$(SUDO)" tests/packages $(TEST_PACKAGES)

build: packages
	@cargo build --profile $(PROFILE) --package neso

up: build
	@$(SUDO) $(NESO) up

down:
	@if [ -x $(NESO) ]; then $(SUDO) $(NESO) down; else echo "nothing was built here, so nothing of ours runs"; fi

clean-data: down
	@if [ -x $(NESO) ]; then $(SUDO) $(NESO) clean-data --yes; fi

test: test-packages
	@SUDO="$(SUDO)" tests/run
