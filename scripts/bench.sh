#!/usr/bin/env bash
# Compares Tailwater with the least that a server can do (the floor, scripts/bench/floor.c) and with other servers that
# stream to many clients: the same load, the same clients, one after another in the same run. Prints a table; in
# parentheses are ratios to the floor. Uses only the loopback interface, and stops everything that it started.
#   --quick          one short run of each cell: 5 minutes. Otherwise medians of three, in 40 minutes
#   --servers LIST   only these of floor,tailwater,tailwater-sse,durable-streams,durable-streams-memory,socketio,
#                    socketio-streams,resumable-stream
#   --missing N=WHY  install nothing for servers that need redis, durable-streams or cc, and do not measure them
#   --seconds N      how long events are published in fan-out, one-to-one, many-jobs and busy-jobs
#   --json FILE      where all reports are written; otherwise target/bench.json
#   CELL...          only these of fan-out one-to-one many-jobs busy-jobs most-fan-out most-one-to-one idle-shared idle-own
#                    resume-one resume-many resume-cold late memory. Only if they are named: growth-jobs
#                    growth-watchers (10 to 10,000 of them, in as many files) threads worker
# TAILWATER_PROGRAM is a program to measure instead of building one. What the other servers need is installed into the
# git-ignored .tools/, and redis-server as a system package if this runs as root. One that cannot be installed is named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly durable_streams=0.1.5 tools=$PWD/.tools/bench

die() { printf 'bench.sh: %s\n' "$*" >&2; exit 1; }
say() { printf 'bench.sh: %s\n' "$*" >&2; }

[[ $(uname -s) == Linux ]] || die "it needs Linux: it reads CPU time and memory from /proc."
command -v python3 >/dev/null || die "python3 is missing."

# Each connection is a file of the server and one of the benchmark.
ulimit -n "$(ulimit -H -n)"
(($(ulimit -n) == -1 || $(ulimit -n) >= 9500)) || say "only $(ulimit -n) open files are allowed: cells with 9000 clients fail"
[[ "$*" != *growth* ]] || (($(ulimit -n) == -1 || $(ulimit -n) >= 14000)) ||
  say "only $(ulimit -n) open files are allowed: one address gets three quarters of the connections, so 10,000 clients fail"

# Every flag of `tailwater` is also a variable. Variables set for another purpose must not change the measurement.
program=${TAILWATER_PROGRAM:-}
for name in ${!TAILWATER_@}; do unset "$name"; done
if [[ -z $program ]]; then
  cargo build --release --locked --bin tailwater >&2
  program=${CARGO_TARGET_DIR:-target}/release/tailwater
fi
[[ -x $program ]] || die "$program does not exist or is not executable."

arguments=(--tailwater "$(realpath "$program")" --nats-server "$(scripts/nats-server.sh)")
# A server is installed only if it is to be measured.
wanted=$(python3 scripts/bench/run.py --needs "$@")
# Node finds packages beside the program that names them, so the programs are copied.
npm_packages() {
  local folder=scripts/bench/peers
  mkdir -p "$tools/peers" && cp $folder/* "$tools/peers/" || return 1
  cmp -s $folder/package-lock.json "$tools/peers/installed" && return
  # No package needs to run a script while it is installed.
  (cd "$tools/peers" && timeout 600 npm ci --silent --ignore-scripts --no-audit --no-fund >&2) || return 1
  cp $folder/package-lock.json "$tools/peers/installed"
}
missing() { arguments+=(--missing "$1=$2"); say "$1: $2"; }

mkdir -p "$tools"
if [[ $wanted == *cc* ]]; then
  if cc -O2 -o "$tools/floor" scripts/bench/floor.c; then
    arguments+=(--floor "$tools/floor")
  else
    missing cc "a C compiler is missing"
  fi
fi
if [[ $wanted == *redis* ]]; then
  if ! command -v redis-server >/dev/null && command -v apt-get >/dev/null && [[ $(id -u) == 0 ]]; then
    say "installing redis-server"
    { timeout 300 apt-get update -qq && timeout 300 apt-get install -yqq --no-install-recommends redis-server; } >&2 || true
  fi
  if ! command -v redis-server >/dev/null; then
    missing redis "redis-server is missing and could not be installed"
  elif ! command -v npm >/dev/null; then
    missing redis "Node.js with npm is missing"
  elif ! npm_packages; then
    missing redis "the npm packages of scripts/bench/peers could not be installed"
  else
    arguments+=(--redis "$(command -v redis-server)" --peers "$tools/peers")
  fi
fi
if [[ $wanted == *durable-streams* ]]; then
  if [[ -x $tools/bin/durable-streams-server ]] ||
    timeout 1800 cargo install durable-streams --version $durable_streams --locked --quiet --root "$tools" >&2; then
    arguments+=(--durable-streams "$tools/bin/durable-streams-server" --durable-streams-version $durable_streams)
  else
    missing durable-streams "cargo install durable-streams --version $durable_streams failed"
  fi
fi

exec timeout --foreground --kill-after 20 3600 python3 scripts/bench/run.py "${arguments[@]}" "$@"
