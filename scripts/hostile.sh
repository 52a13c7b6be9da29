#!/usr/bin/env bash
# Measures what hostile clients cost an edge: starts a broker, workers, an edge and 200 honest clients on all transports
# that watch jobs, runs the attacks one after another, and prints for each how long it took, how much memory the edge used and how
# late events reached the honest clients. Uses only the loopback interface, and stops everything that it started.
#   --short     dev profile, 30 honest clients, fewer and smaller attacks: takes about five minutes and the build
#   --list      list the attacks
#   NAME...     run only these attacks
# TAILWATER_PROGRAM is a program to test instead of building one.
# Exits with 1 if an edge died; used for an attack more than its memory budget (64 MiB, the smallest) and 32 KiB for each
# connection (128 KiB for one with a large head, 4 MiB for one of HTTP/2 with 128 requests), and 32 MiB for each thread while it
# reads much of the log; or still had more than 24 MiB of it
# 30 s later; if an attack failed or took more than 240 s, since the jobs of the honest clients end a minute after that; or if
# honest clients lost their connections, or 1 of 100 events reached them later than twice the larger of 50 ms and the delay before
# the attack (with --short, 500 ms instead of 50: the program is not optimized). Attackers run at nice 19: they share the
# processors of the edge and of the honest clients, and real ones do not. Attacks during which the broker is stopped check memory
# only. Attacks over HTTP/2 use TLS, and so do the honest clients beside them. The last line counts attacks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'hostile.sh: %s\n' "$*" >&2; exit 1; }

for program in python3 openssl; do
  command -v "$program" >/dev/null || die "$program is missing."
done
for argument in "$@"; do
  [[ $argument == --list ]] && exec python3 scripts/hostile/run.py --list
done

# Every flag of `tailwater` is also a variable. Variables set for another purpose must not change the measurement.
program=${TAILWATER_PROGRAM:-}
for name in ${!TAILWATER_@}; do unset "$name"; done
if [[ -z $program ]]; then
  profile=release
  for argument in "$@"; do [[ $argument == --short ]] && profile=dev; done
  cargo build --locked --bin tailwater --profile "$profile" >&2
  program=${CARGO_TARGET_DIR:-target}/${profile/dev/debug}/tailwater
fi
[[ -x $program ]] || die "$program does not exist or is not executable."
NATS_SERVER=$(scripts/nats-server.sh)
limit=1800
for argument in "$@"; do [[ $argument == --short ]] && limit=880; done
exec timeout --kill-after 10 "$limit" \
  python3 scripts/hostile/run.py --program "$program" --nats-server "$NATS_SERVER" "$@"
