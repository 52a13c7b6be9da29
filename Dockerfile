# The image of the program, for edges, workers and `setup`: the program, BusyBox for scripts and health checks, and the
# certificate authorities. It holds nothing else, writes nothing, and runs with a read-only root.

# The image has the pinned toolchain. rust-toolchain.toml is excluded (see .dockerignore), because it would make rustup
# download components that a build does not need.
FROM rust:1.95-bookworm AS build
WORKDIR /src
# A static program, which needs no files of a system: musl instead of glibc.
RUN apt-get update -q \
 && apt-get install -yq --no-install-recommends busybox-static musl-tools \
 && target="$(uname -m)-unknown-linux-musl" \
 && if [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then rustup target add "$target"; fi

# The dependencies, built with an empty program, are a layer of their own, which is rebuilt only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
 && echo 'fn main() {}' > src/main.rs \
 && touch src/lib.rs \
 && cargo build --profile dist --locked --target "$(uname -m)-unknown-linux-musl" \
 && rm -r src

# The sources embed the declarations of nats/ and the client for browsers. COPY keeps the files' times, which may be older than the empty program;
# without `touch`, cargo would not rebuild it.
COPY build.rs ./
COPY nats nats
COPY clients/typescript/dist clients/typescript/dist
COPY src src
# For `--version`: `COMMIT DATE`, since the clone is not copied.
ARG TAILWATER_COMMIT=
RUN touch build.rs src/main.rs src/lib.rs \
 && TAILWATER_COMMIT="$TAILWATER_COMMIT" cargo build --profile dist --locked --bin tailwater --target "$(uname -m)-unknown-linux-musl" \
 && mkdir -p /image/bin /image/usr/local/bin /image/etc/ssl/certs \
 && mkdir -m 1777 /image/tmp \
 && cp "target/$(uname -m)-unknown-linux-musl/dist/tailwater" /image/usr/local/bin/ \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && cp "$(command -v busybox)" /image/bin/busybox \
 && for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "/image/bin/$applet"; done

FROM scratch
COPY --from=build /image/ /
ENV PATH=/usr/local/bin:/bin
# By number, so that an orchestrator can see that it is not root. It needs no home directory: it writes nothing.
USER 10001:10001
ENTRYPOINT ["tailwater"]
