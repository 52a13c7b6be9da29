# The image of the one binary, for edges, workers and `setup` alike.

# The image's own toolchain is the pinned one; rust-toolchain.toml stays outside (see .dockerignore), because it would make
# rustup fetch components that a build does not need.
FROM rust:1.95-bookworm AS build
WORKDIR /src

# The dependencies, built with an empty program, are a layer of their own: it is made again only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
 && echo 'fn main() {}' > src/main.rs \
 && touch src/lib.rs \
 && cargo build --release --locked \
 && rm -r src

# The sources embed the declarations of nats/. COPY keeps the files' own times, which may be older than the empty program,
# and cargo would then take that for the finished one.
COPY nats nats
COPY src src
RUN touch src/main.rs src/lib.rs \
 && cargo build --release --locked --bin tailwater

FROM debian:bookworm-slim
# The slim image has no certificate authorities, and a backend may speak to a model's API over TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/tailwater /usr/local/bin/tailwater
# By number, so that an orchestrator can see that it is not root. It needs no home: nothing is ever written to the image.
USER 10001:10001
ENTRYPOINT ["tailwater"]
