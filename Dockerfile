# The image of the program, for edges, workers and `setup`.

# The image has the pinned toolchain. rust-toolchain.toml is excluded (see .dockerignore), because it would make rustup
# download components that a build does not need.
FROM rust:1.95-bookworm AS build
WORKDIR /src

# The dependencies, built with an empty program, are a layer of their own, which is rebuilt only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
 && echo 'fn main() {}' > src/main.rs \
 && touch src/lib.rs \
 && cargo build --release --locked \
 && rm -r src

# The sources embed the declarations of nats/ and the client for browsers. COPY keeps the files' times, which may be older than the empty program;
# without `touch`, cargo would not rebuild it.
COPY nats nats
COPY clients/typescript/dist clients/typescript/dist
COPY src src
RUN touch src/main.rs src/lib.rs \
 && cargo build --release --locked --bin tailwater

FROM debian:bookworm-slim
# The slim image has no certificate authorities, which a backend needs for TLS to a model server.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/tailwater /usr/local/bin/tailwater
# By number, so that an orchestrator can see that it is not root. It needs no home directory: it writes nothing.
USER 10001:10001
ENTRYPOINT ["tailwater"]
