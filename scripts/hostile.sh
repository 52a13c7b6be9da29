#!/usr/bin/env bash
# What hostile clients cost an edge: starts a broker, workers and an edge, has a hundred honest clients watch jobs beside,
# runs one attack after the other, and prints for each how much memory the edge took and how late the honest clients were
# served. Only the loopback interface is used, and all that was started is ended.
#   --short     the dev profile, smaller attacks and fewer of them: under a minute and the build, for every change
#   --list      say what the attacks are
#   NAME...     only these attacks
# TAILWATER_PROGRAM names a program to test instead of building one.
# Exits 1 when an attack took more than 64 MiB, or did not give it back. The last line counts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'hostile.sh: %s\n' "$*" >&2; exit 1; }

command -v python3 >/dev/null || die "python3 is missing."
for argument in "$@"; do
  [[ $argument == --list ]] && exec python3 scripts/hostile/run.py --list
done

# Every flag of `tailwater` is a variable, too: one that is set for other purposes must not change what is measured.
program=${TAILWATER_PROGRAM:-}
for name in ${!TAILWATER_@}; do unset "$name"; done
if [[ -z $program ]]; then
  profile=release
  for argument in "$@"; do [[ $argument == --short ]] && profile=dev; done
  cargo build --locked --bin tailwater --profile "$profile" >&2
  program=${CARGO_TARGET_DIR:-target}/${profile/dev/debug}/tailwater
fi
[[ -x $program ]] || die "there is no program $program."
NATS_SERVER=$(scripts/nats-server.sh)
limit=1200
for argument in "$@"; do [[ $argument == --short ]] && limit=240; done
exec timeout --kill-after 10 "$limit" \
  python3 scripts/hostile/run.py --program "$program" --nats-server "$NATS_SERVER" "$@"
