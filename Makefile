# make demo        sets the machine up, then runs the whole pipe on a real image in a real VM
# make test        sets the machine up, then runs the unit tests and the tools on real parts
# make guest-arm64 builds what arm64 guests need on an amd64 machine (guest-amd64: the reverse)
# make arm64       cross-compiles everything for an arm64 machine (experimental); make deps-arm64 installs what that needs
# make dist        makes a tarball and Debian packages in target/dist, for this machine's architecture; dist-arm64 for that one
# make install     builds, and installs below PREFIX (/usr/local), in DESTDIR
# make uninstall   removes what make install installed
# make lint        rustfmt, clippy, mandoc, shellcheck, cargo-deny

SHELL = /bin/bash
.SHELLFLAGS = -euo pipefail -c
.DELETE_ON_ERROR:
# Prerequisites are made in the order in which they are written; cargo itself uses all processors.
.NOTPARALLEL:

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
# The directory for what is fetched or built outside of this workspace. It outlives a clone.
export MSB_DEPS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/msb/deps

TOOLS = msb msb-run msb-pull msb-patch msb-mount msb-boot msb-exec msb-cp msb-pack msb-diff msb-stop msb-snapshot msb-fork msb-ls msb-logs msb-stats msb-rm msb-store msb-oci
RELEASE = target/release
# agentd runs in any root, so it is linked statically. Its flags need a target directory of their own, and an explicit target so that
# build scripts are built without them.
TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')

# The architectures, by Debian's name: the kernel's name, the compiler's triple, and what cargo needs to link for it.
ARCHITECTURES = amd64 arm64
machine_amd64 = x86_64
machine_arm64 = aarch64
HOST_ARCHITECTURE = $(if $(filter aarch64-%,$(TRIPLE)),arm64,amd64)
triple = $(machine_$1)-unknown-linux-gnu
linker = CARGO_TARGET_$(subst -,_,$(shell echo $(call triple,$1) | tr a-z A-Z))_LINKER=$(machine_$1)-linux-gnu-gcc
# What is built for an architecture holds no path of this machine.
remap = --remap-path-prefix=$(CURDIR)=/msb --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo
# The directories with what guests of other architectures need.
GUESTS ?= $(foreach name,$(ARCHITECTURES),$(machine_$(name)))
# The directory below $(MSB_DEPS) for an architecture, with a slash: none for this machine's own.
deps-dir = $(if $(filter $1,$(HOST_ARCHITECTURE)),,$(machine_$1)/)

.PHONY: help deps build install-files agentd $(ARCHITECTURES) $(foreach name,deps guest dist,$(ARCHITECTURES:%=$(name)-%)) dist man demo uninstall test test-slow test-kill test-layers test-krun test-krun-all test-block test-oci test-oci-krun test-oci-many test-arm64 fuzz lint bench bench-krun bench-net bench-oci bench-pack bench-patch bench-pull bench-shutdown bench-snapshot bench-volume install clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

deps:
	@tools/deps.sh

build: agentd
	@echo "== building the tools (cargo, release)"
	$(CARGO) build --release --locked --workspace --exclude agentd
	@test -e $(MSB_DEPS)/bin/vhost-device-vsock.crates || \
		{ echo "vhost-device-vsock or the list of its crates is missing: run \"make deps\" first" >&2; exit 1; }
	@cp -uL --remove-destination $(MSB_DEPS)/bin/vhost-device-vsock{,.crates} $(RELEASE)/
	@if [ -e $(MSB_DEPS)/lib/libkrunfw.so.5 ]; then cp -uL --remove-destination $(MSB_DEPS)/lib/libkrunfw.so.5 $(RELEASE)/; fi

agentd:
	@echo "== building agentd (static)"
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --profile agent --locked -p agentd \
		--target $(TRIPLE) --target-dir target/static
	@mkdir -p $(RELEASE)
	@cp -u --remove-destination target/static/$(TRIPLE)/agent/agentd $(RELEASE)/agentd

# What guests of an architecture need, for the tools in $(RELEASE).
$(ARCHITECTURES:%=guest-%): guest-%:
	@tools/deps.sh --guest $*
	@echo "== building agentd for $* (static)"
	$(call linker,$*) RUSTFLAGS='-C target-feature=+crt-static $(remap)' $(CARGO) build --profile agent --locked -p agentd \
		--target $(call triple,$*) --target-dir target/static
	@mkdir -p $(RELEASE)/$(machine_$*)
	@cp -u --remove-destination target/static/$(call triple,$*)/agent/agentd $(RELEASE)/$(machine_$*)/
	@if [ -e $(MSB_DEPS)/$(call deps-dir,$*)lib/libkrunfw.so.5 ]; then \
		cp -uL --remove-destination $(MSB_DEPS)/$(call deps-dir,$*)lib/libkrunfw.so.5 $(RELEASE)/$(machine_$*)/; fi

# Everything for a machine of an architecture, in target/TRIPLE/release.
$(ARCHITECTURES:%=deps-%): deps-%:
	@tools/deps.sh $*

$(ARCHITECTURES): %: guest-%
	@echo "== building the tools for $* (cargo, release)"
	$(call linker,$*) RUSTFLAGS='$(remap)' $(CARGO) build --release --locked --workspace --exclude agentd --target $(call triple,$*)
	@test -e $(MSB_DEPS)/$(call deps-dir,$*)bin/vhost-device-vsock.crates || \
		{ echo "vhost-device-vsock or the list of its crates is missing: run \"make deps-$*\" first" >&2; exit 1; }
	@cp -uL --remove-destination $(MSB_DEPS)/$(call deps-dir,$*)bin/vhost-device-vsock{,.crates} $(RELEASE)/$(machine_$*)/* \
		target/$(call triple,$*)/release/

# A tarball and Debian packages, in target/dist. The same binaries make the same bytes.
dist: dist-$(HOST_ARCHITECTURE)

$(ARCHITECTURES:%=dist-%): dist-%: build %
	@tools/dist.sh $* target/$(call triple,$*)/release target/dist

# The pages of section 1 are generated from the flags and from page.rs of each tool; the others get the same date.
man: build
	@for tool in $(TOOLS); do $(RELEASE)/$$tool --generate man > man/$$tool.1; done
	@date=$$(sed -n '1s/^.TH [^ ]* 1 \([^ ]*\) .*/\1/p' man/msb-pull.1); \
	sed -i -E "1s/^(\.TH [^ ]+ [578]) [^ ]+/\1 $$date/" man/*.[578]
	@$(RELEASE)/msb-pull --generate schema > man/msb-record.schema.json
	@$(RELEASE)/msb-boot --generate security > man/msb-security.7

# libkrun without the rest of msb-boot, for comparisons. It is built with the whole workspace, so that its dependencies are not built
# again with other features.
bare-krun = $(CARGO) build --release --locked --workspace --exclude agentd --example bare-krun

demo: deps build
	@tools/demo.sh

test: deps build
	@tests/run
	@$(bare-krun)
	@echo "== VMs with libkrun (in a nested host where this machine has no KVM); make test-krun-all has all their tests"
	@tests/kvm-host/run --filter-tags vmm

# The tests in which the VMM makes a difference, of which "make test" has the short ones; test-krun-all runs all that boot a VM.
test-krun-all: export MSB_KVM_HOST_LIMIT ?= 3600
test-krun test-krun-all: deps build
	@$(bare-krun)
	@tests/kvm-host/run $(if $(filter test-krun,$@),--filter-tags vmm)
	@$(if $(filter test-krun,$@),tests/kvm-host/run --filter-tags vmm-slow)

# The tests that take longest, and those that cover little that the others do not.
test-slow: deps build
	@tests/run --filter-tags slow tests/*.bats

# An emulated arm64 machine, in which the Debian package is installed and VMs run with libkrun and with QEMU, on its KVM.
test-arm64: export MSB_KVM_HOST_ARCH = arm64
test-arm64: export MSB_KVM_HOST_LIMIT ?= 7200
test-arm64: deps deps-arm64 dist-arm64
	@tests/kvm-host/run tests/kvm-host/package.bats

# The tests that should pass on a block root as they do on a shared one, with both VMMs.
alike = $(wildcard tests/t[4-6]-*.bats) tests/t8-handoff.bats
test-block: export MSB_TEST_ROOT = block
test-block: export MSB_KVM_HOST_LIMIT ?= 3600
test-block: deps build
	@tests/run $(alike)
	@$(bare-krun)
	@tests/kvm-host/run $(alike)

# podman and containerd with msb-oci, compared with crun and runc. "make test" has the short ones.
test-oci: deps build
	@tests/run tests/t10-*.bats

# The same with libkrun, without the tests of users, whose packages the nested host does not have, and those of kills and many containers.
test-oci-krun: export MSB_KVM_HOST_LIMIT ?= 7200
test-oci-krun: deps build
	@$(bare-krun)
	@tests/kvm-host/run $(OCI_KRUN)
	@tests/kvm-host/run tests/t10-systemd.bats
OCI_KRUN = $(patsubst %,tests/t10-%.bats,runtime podman options network)

# Many containers one after another, and some at once: "make test-oci-many OCI_ROW=1000".
OCI_ROW ?= 100
OCI_AT_ONCE ?= 20
test-oci-many: export MSB_OCI_ROW = $(OCI_ROW)
test-oci-many: export MSB_OCI_AT_ONCE = $(OCI_AT_ONCE)
test-oci-many: deps build
	@tests/run --filter-tags many tests/t10-kill.bats

# The tests that kill a tool at many moments, with many more moments than "make test" has: a twentieth of them for a commit.
test-kill: export MSB_KILLS ?= 500
test-kill: deps build
	@tests/run --filter-tags kill tests/t1-pull.bats tests/t1-store.bats tests/t2-pack.bats tests/t2-repeat.bats tests/t3-mount.bats tests/t7-run.bats tests/t8-commit.bats tests/t8-snapshot-kill.bats tests/t10-kill.bats

# Many generated images of a new seed, unpacked by msb-pull and umoci. "make test" has ten.
LAYERS ?= 200
test-layers: deps build
	@PATH=$(CURDIR)/$(RELEASE):$$PATH tests/layers-diff.py --keep --count $(LAYERS) --seed $$(od -An -N4 -tu4 /dev/urandom)

# Runs each target of tests/fuzz for this long. A failing input is written to tests/fuzz/artifacts; once fixed, move it to tests/fuzz/seeds.
FUZZ_SECONDS ?= 600
# The flags for coverage are unstable.
fuzz: export RUSTC_BOOTSTRAP = 1
fuzz:
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	@cd tests/fuzz; for target in targets/*.rs; do \
		target=$$(basename $$target .rs); \
		echo "== fuzzing $$target for $(FUZZ_SECONDS) s"; \
		mkdir -p ../../target/fuzz/corpus/$$target; \
		$(CARGO) fuzz run --fuzz-dir . --target-dir ../../target/fuzz --sanitizer none $$target \
			../../target/fuzz/corpus/$$target seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=512; \
	done

lint:
	$(CARGO) fmt --all --check
	rustfmt --check msb-patch/src/op/*.rs
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	@# With the features that agentd has, and with those of a program that needs the record alone.
	$(CARGO) clippy --release --locked -p agentd -- -D warnings
	$(CARGO) clippy --release --locked -p msb --no-default-features --features record -- -D warnings
	mandoc -T lint man/*.[1578]
	shellcheck -x tools/*.sh tests/run tests/foreign-programs tests/kvm-host/run tests/kvm-host/init tests/*.bash tests/*.sh examples/dockerfile/msb-build .ci/run
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check bans licenses sources; \
	else echo "cargo-deny is missing, so licences and sources were not checked (cargo install --locked cargo-deny)"; fi

# Ratios against other tools, measured in one run. Nothing passes or fails.
bench: deps build
	@for bench in $(filter-out %-krun.sh %-many.sh %-shutdown.sh,$(wildcard tests/bench-*.sh)); do echo "== $$bench"; $$bench; done

# The same for libkrun, in the nested host where this machine has no KVM.
bench-krun: export MSB_KVM_HOST_LIMIT ?= 7200
bench-krun: deps build
	@$(bare-krun)
	@for bench in bench-krun bench-exec bench-net bench-block-krun; do echo "== $$bench"; tests/kvm-host/run tests/$$bench.sh; done

# The guest's network alone.
bench-net: deps build
	@tests/bench-net.sh

# Volumes alone.
bench-volume: deps build
	@tests/bench-volume.sh

# msb-pull, msb-pack, msb-patch and the containers of podman alone.
bench-pull: inflate = $(CARGO) build --release --locked --workspace --exclude agentd --example inflate
bench-pull bench-pack bench-patch bench-oci: deps build
	@$(inflate)
	@tests/$@.sh

# The cost of handing PID 1 to each of seven inits, and the time that each takes to power off, on both VMMs.
bench-shutdown: deps build
	@$(bare-krun)
	@tests/bench-shutdown.sh
	@tests/kvm-host/run tests/bench-shutdown.sh 1

# How long a guest is paused to be saved, and how soon one goes on from there: emulated, and on KVM in a nested host.
bench-snapshot: deps build
	@tests/bench-snapshot.sh
	@$(bare-krun)
	@MSB_KVM_HOST_QEMU=1 tests/kvm-host/run tests/bench-snapshot.sh 1 0 64

install: build install-files

# The binaries of another architecture can be installed with the pages and completions that this machine's tools print.
BINARIES ?= $(RELEASE)
install-files:
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/msb $(DESTDIR)$(PREFIX)/lib/msb
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/man/man,1 5 7 8)
	install -m 0755 $(addprefix $(BINARIES)/,$(TOOLS)) $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(BINARIES)/agentd $(BINARIES)/vhost-device-vsock $(DESTDIR)$(PREFIX)/libexec/msb
	if [ -e $(BINARIES)/libkrunfw.so.5 ]; then install -m 0644 $(BINARIES)/libkrunfw.so.5 $(DESTDIR)$(PREFIX)/lib/msb; fi
	for machine in $(GUESTS); do \
		[ -e $(BINARIES)/$$machine/agentd ] || continue; \
		install -d $(DESTDIR)$(PREFIX)/libexec/msb/$$machine; \
		install -m 0755 $(BINARIES)/$$machine/agentd $(DESTDIR)$(PREFIX)/libexec/msb/$$machine; \
		[ ! -e $(BINARIES)/$$machine/libkrunfw.so.5 ] || \
			install -m 0644 $(BINARIES)/$$machine/libkrunfw.so.5 $(DESTDIR)$(PREFIX)/libexec/msb/$$machine; \
	done
	for section in 1 5 7 8; do install -m 0644 man/*.$$section $(DESTDIR)$(PREFIX)/share/man/man$$section; done
	install -d $(DESTDIR)$(PREFIX)/share/msb/oci
	for file in msb-oci/dist/*; do sed 's|@PREFIX@|$(PREFIX)|' $$file > $(DESTDIR)$(PREFIX)/share/msb/oci/$${file##*/}; done
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	for tool in $(TOOLS); do \
		$(RELEASE)/$$tool --generate bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$$tool; \
		$(RELEASE)/$$tool --generate zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_$$tool; \
		$(RELEASE)/$$tool --generate fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/$$tool.fish; \
	done

# What other packages may have put into the same directories stays.
uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(TOOLS))
	rm -rf $(DESTDIR)$(PREFIX)/libexec/msb $(DESTDIR)$(PREFIX)/lib/msb $(DESTDIR)$(PREFIX)/share/msb
	for section in 1 5 7 8; do (cd man && echo *.$$section) | xargs -n 1 | sed 's|^|$(DESTDIR)$(PREFIX)/share/man/man'$$section'/|' | xargs rm -f; done
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/bash-completion/completions/,$(TOOLS))
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_,$(TOOLS))
	rm -f $(TOOLS:%=$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/%.fish)

docs/pipe.svg: docs/pipe.txt tools/pipe-svg.py
	tools/pipe-svg.py docs/pipe.txt > $@

clean:
	$(CARGO) clean
