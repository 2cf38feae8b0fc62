# What a person types. Everything installs what it lacks from Debian packages, and only then.
TARGET  ?= $(shell rustc -vV | sed -n 's/^host: //p')
PREFIX  ?= /usr/local
DESTDIR ?=
OUT      = target/$(TARGET)/release
PROGRAMS = insula insulad insula-monitor insula-proxy insula-agent insula-vmm insula-runtime containerd-shim-insula-v2

.PHONY: help demo test bench release install uninstall fixtures

help:
	@echo 'make demo      build the release and show the main job, then clean up'
	@echo 'make test      run all tests (those that need root say so when they skip)'
	@echo 'make bench     compare with docker, podman, skopeo, crun, runc and youki; writes bench/RESULTS.md'
	@echo 'make release   static programs in $(OUT)'
	@echo 'make install   put them below PREFIX=$(PREFIX)'

# With an explicit target the flags do not reach build scripts and procedural macros, which a
# static C library would break.
release:
	@scripts/require-packages cc:gcc cc:libc6-dev
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/scripts/rustc-release \
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target $(TARGET) \
	    $(addprefix --package ,$(PROGRAMS))

install:
	@test -x $(OUT)/insula || { echo 'make release comes first'; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions
	install -m 755 $(addprefix $(OUT)/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	ln -sf containerd-shim-insula-v2 $(DESTDIR)$(PREFIX)/bin/containerd-shim-insula-vm-v2
	$(OUT)/insula man $(DESTDIR)$(PREFIX)/share/man/man1
	$(OUT)/insula completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/insula
	$(OUT)/insula completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_insula

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS) containerd-shim-insula-vm-v2) $(DESTDIR)$(PREFIX)/share/man/man1/insula.1 \
	    $(DESTDIR)$(PREFIX)/share/man/man1/insula-*.1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/insula $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_insula

demo: release
	@scripts/require-packages mmdebstrap:mmdebstrap curl:curl nft:nftables ip:iproute2 depmod:kmod qemu-system-x86_64:qemu-system-x86
	INSULA_BIN_DIR=$(CURDIR)/$(OUT) demo/run

test:
	@scripts/require-packages cc:gcc cc:libc6-dev busybox:busybox-static runc:runc mmdebstrap:mmdebstrap nft:nftables ip:iproute2 dockerd:docker.io docker-compose:docker-compose pasta:passt slirp4netns:slirp4netns newuidmap:uidmap python3-venv:python3-venv npm:npm strip:binutils depmod:kmod qemu-system-x86_64:qemu-system-x86 docker-registry:docker-registry openssl:openssl curl:curl podman:podman buildah:buildah git:git containerd:containerd ufw:ufw iptables:iptables skopeo:skopeo criu:criu apparmor_parser:apparmor mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs
	scripts/test

bench: release
	@scripts/require-packages cc:gcc cc:libc6-dev busybox:busybox-static dockerd:docker.io podman:podman crun:crun runc:runc nft:nftables ip:iproute2 iptables:iptables skopeo:skopeo docker-registry:docker-registry du:coreutils iperf3:iperf3 wrk:wrk lxc-start:lxc systemd-nspawn:systemd-container fio:fio mmdebstrap:mmdebstrap
	@command -v nginx >/dev/null || echo 'without nginx, whose package starts it, networks are left out'
	@command -v youki >/dev/null || echo 'without youki, which is no package (see CONTRIBUTING.md), the runtimes of bundles are compared without it'
	INSULA_BIN_DIR=$(CURDIR)/$(OUT) cargo run --release --package insula-bench -- $(BENCH)
