# Passerelle's images, one target each:
#
#   docker build --target agent -t passerelle/agent .
#   docker build --target hub -t passerelle/hub .
#   docker build --target passerelle -t passerelle/passerelle .
#
# Builds with BuildKit and with the older builder (DOCKER_BUILDKIT=0), which docker-compose 1 uses. What takes long is
# `dependencies`: its layer stays valid until a manifest or Cargo.lock changes, not with every source file.
#
# The bases can be named by digest: --build-arg RUST_IMAGE=rust@sha256:…, --build-arg DEBIAN_IMAGE=debian@sha256:…
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim

# Third-party crates, compiled for empty crates with our manifests. An image of the stage `build` may take the place of
# RUST_IMAGE: it has all of this, and only what changed since is compiled.
FROM ${RUST_IMAGE} AS dependencies
# For OpenSSL inside libssh2.
RUN apt-get update \
 && apt-get install -y --no-install-recommends make perl \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# What is handed out is built with --build-arg PROFILE=dist, which takes longer: `docs/releasing.md`.
ARG PROFILE=release
# Symbols are a third of the programs, and the messages of a fault name file and line without them.
ENV CARGO_PROFILE_RELEASE_STRIP=symbols
COPY Cargo.toml Cargo.lock ./
COPY .cargo/ .cargo/
COPY protocol/Cargo.toml protocol/
COPY config/Cargo.toml config/
COPY connectors/Cargo.toml connectors/
COPY agent/Cargo.toml agent/
COPY hub/Cargo.toml hub/
COPY cli/Cargo.toml cli/
COPY tests/Cargo.toml tests/
RUN test -d agent/src || { set -eu; \
      for crate in protocol config connectors agent hub cli tests; do \
        mkdir -p $crate/src; : > $crate/src/lib.rs; \
      done; \
      for crate in agent hub cli; do echo 'fn main() {}' > $crate/src/main.rs; done; \
      mkdir -p tests/src/bin/bench tests/src/bin/chaos; \
      for bin in bench chaos; do echo 'fn main() {}' > tests/src/bin/$bin/main.rs; done; \
      cargo build --profile $PROFILE --locked -p passerelle-agent -p passerelle-hub -p passerelle; \
      cargo clean --profile $PROFILE -p passerelle-protocol -p passerelle-config -p passerelle-connectors \
        -p passerelle-agent -p passerelle-hub -p passerelle; \
      rm -rf protocol/src config/src connectors/src agent/src hub/src cli/src tests/src; \
    }

# The three programs, and for each a folder with it and the libraries that it is linked with.
FROM dependencies AS build
ARG PROFILE=release
COPY protocol/ protocol/
COPY config/ config/
COPY connectors/ connectors/
COPY agent/ agent/
COPY hub/ hub/
COPY cli/ cli/
RUN mkdir -p tests/src/bin/bench tests/src/bin/chaos \
 && touch tests/src/lib.rs tests/src/bin/bench/main.rs tests/src/bin/chaos/main.rs \
 && cargo build --profile $PROFILE --locked --bins -p passerelle-agent -p passerelle-hub -p passerelle
RUN set -eu; rm -rf /out; \
    for program in passerelle-agent passerelle-hub passerelle; do \
      mkdir -p /out/$program/usr/bin; \
      cp target/$PROFILE/$program /out/$program/usr/bin/; \
      for library in $(ldd target/$PROFILE/$program | grep -o '/[^ ]*'); do \
        cp -L --parents $library /out/$program/; \
      done; \
    done

# What every image has beside its program: certificates, time zones, the account, how names are looked up. `owned` are the
# folders for data: a volume that is mounted there for the first time belongs to the account like them.
FROM ${DEBIAN_IMAGE} AS system
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates tzdata \
 && rm -rf /var/lib/apt/lists/*
RUN set -eu; \
    mkdir -p /system/etc/ssl/certs /system/usr/share; \
    cp -L /etc/ssl/certs/ca-certificates.crt /system/etc/ssl/certs/; \
    cp -a /usr/share/zoneinfo /system/usr/share/; \
    rm -rf /system/usr/share/zoneinfo/posix /system/usr/share/zoneinfo/right; \
    echo 'hosts: files dns' > /system/etc/nsswitch.conf; \
    echo 'root:x:0:0:root:/:/usr/sbin/nologin' > /system/etc/passwd; \
    echo 'passerelle:x:10001:10001:Passerelle:/:/usr/sbin/nologin' >> /system/etc/passwd; \
    echo 'root:x:0:' > /system/etc/group; \
    echo 'passerelle:x:10001:' >> /system/etc/group; \
    mkdir -p /owned/agent/config /owned/agent/state /owned/hub/data /owned/hub/bootstrap \
      /owned/passerelle/data /owned/passerelle/tmp; \
    chmod 0700 /owned/agent/state /owned/hub/data; \
    chmod 1777 /owned/passerelle/tmp

# The cloud-side developer's client, and the demonstration (`passerelle dev`).
FROM scratch AS passerelle
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Passerelle client" \
      org.opencontainers.image.description="Submits jobs to a Passerelle hub and shows what became of them" \
      org.opencontainers.image.vendor="Passerelle" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=system /system/ /
COPY --from=system --chown=10001:10001 /owned/passerelle/ /
COPY --from=build /out/passerelle/ /
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/passerelle"]
CMD ["--help"]

# The cloud side. Its data folder is /data.
FROM scratch AS hub
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Passerelle hub" \
      org.opencontainers.image.description="Takes jobs over HTTP and hands them to the agents that dial in" \
      org.opencontainers.image.vendor="Passerelle" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=system /system/ /
COPY --from=system --chown=10001:10001 /owned/hub/ /
COPY --from=build /out/passerelle-hub/ /
ENV PASSERELLE_HUB_DATA=/data PASSERELLE_HUB_LISTEN=0.0.0.0:8080
EXPOSE 8080
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/bin/passerelle-hub", "health"]
ENTRYPOINT ["/usr/bin/passerelle-hub"]
CMD ["serve"]

# The agent. Its configuration folder is /config; /state is there for a state folder apart from it.
FROM scratch AS agent
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Passerelle agent" \
      org.opencontainers.image.description="Carries out jobs of a cloud hub on private systems, within what its operator allows" \
      org.opencontainers.image.vendor="Passerelle" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=system /system/ /
COPY --from=system --chown=10001:10001 /owned/agent/ /
COPY --from=build /out/passerelle-agent/ /
ENV PASSERELLE_LISTEN=[::]:9464
EXPOSE 9464
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/bin/passerelle-agent", "health"]
ENTRYPOINT ["/usr/bin/passerelle-agent"]
CMD ["run"]
