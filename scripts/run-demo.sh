#!/usr/bin/env bash
# Builds Tailwater, starts it on free ports, runs a real program as a job, and follows the job as a client whose connection
# is cut in the middle. Prints what the client counted, compares what it received with the program's output, and keeps
# running so that you can try more; Ctrl-C stops everything.
#   --check   stop after the comparison: exit code 0 if it holds, 1 if not. Takes half a minute and the build.
# It writes to a temporary directory that it removes, to target/, and to .tools/ if there is no nats-server.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/checks.sh
source scripts/checks.sh

say() { printf '\n== %s\n' "$*"; }

only_check=
case "${1:-} $#" in
  " 0") ;;
  "--check 1") only_check=1 ;;
  *) printf 'usage: scripts/run-demo.sh [--check]\n' >&2; exit 64 ;;
esac
command -v cargo >/dev/null ||
  die "Rust is missing. Install it with rustup, which then takes the version that rust-toolchain.toml names."

# Every flag of `tailwater` is also a variable. Variables set for another purpose must not redirect the demo.
for name in ${!TAILWATER_@}; do unset "$name"; done

# The dev profile: the first build of the release profile takes several times as long.
say "build (some minutes the first time)"
cargo build --locked
tailwater=${CARGO_TARGET_DIR:-target}/debug/tailwater
[[ -x $tailwater ]] || die "cargo did not build $tailwater."
NATS_SERVER=$(scripts/nats-server.sh)
export NATS_SERVER

dir=$(mktemp -d "${TMPDIR:-/tmp}/tailwater-demo.XXXXXX")
children=()

# Stops what was started here, in the order of starting.
cleanup() {
  local pid
  for pid in ${children[@]+"${children[@]}"}; do stop "$pid"; done
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The job: numbers the lines of a document and writes one every 25 ms, about as fast as a model.
readonly file=docs/workers.md
number() { awk '{ printf "%4d  %s\n", NR, $0 }' "$1"; }
readonly slowly='awk "{ printf \"%4d  %s\\n\", NR, \$0 }" "$1" |
  while IFS= read -r line; do printf "%s\n" "$line"; sleep 0.025; done'
number "$file" >"$dir/expected"

say "tailwater up: a NATS server, an edge, and workers for the kinds demo and exec"
# In its own process group: Ctrl-C reaches this script, which then stops it in order.
set -m
"$tailwater" up --listen 127.0.0.1:0 --data-dir "$dir/data" -- sh -c "$slowly" sh "$file" \
  >"$dir/up.out" 2>"$dir/up.err" </dev/null &
up=$!
set +m
children+=("$up")
is_up() {
  has_ended "$up" && die "tailwater up ended: $(cat "$dir/up.err")"
  grep -q '^ready ' "$dir/up.out"
}
until_true 60 is_up || die "tailwater up was not ready in time: $(cat "$dir/up.err")"
nats=$(sed -n 's/^nats //p' "$dir/up.out")
edge=$(sed -n 's/^ready //p' "$dir/up.out")
printf 'nats %s\nedge %s\n' "$nats" "$edge"

say "submit the job, follow it over WebSocket, and cut the connection after 30 events"
job=$("$tailwater" submit --kind exec --id numbered-lines --nats "$nats")
mkfifo "$dir/shown"
tee "$dir/received" <"$dir/shown" &
tee=$!
"$tailwater" tail "$job" --edge "$edge" --drop-after 30 --summary >"$dir/shown" 2>"$dir/client.err" &
client=$!
children+=("$client" "$tee")
until_true 90 has_ended "$client" || die "the job did not end in time."
wait "$client" || die "the client failed: $(cat "$dir/client.err")"
wait "$tee"

say "what the client counted"
summary=$(grep '^chunks ' "$dir/client.err") || die "the client gave no summary: $(cat "$dir/client.err")"
printf '%s\n' "$summary"
[[ $summary =~ ^chunks\ [0-9]+\ ·\ missing\ 0\ ·\ duplicated\ 0\ ·\ resumed\ at\ seq\ 31$ ]] ||
  die "expected: missing 0, duplicated 0, resumed once, at seq 31."
cmp "$dir/expected" "$dir/received" || die "the client did not receive what the program writes."
printf 'received %d bytes, identical to what the program writes\n' "$(wc -c <"$dir/received")"

[[ -z $only_check ]] || exit 0

trap 'exit 0' INT TERM HUP
say "still running: $edge (Ctrl-C stops everything). In another terminal, for example:"
cat <<NEXT
  $tailwater submit --kind demo --input '{"words": 200, "rate": 20}' --watch --nats $nats
  $tailwater tail $job --edge $edge --after 100
  curl -s $edge/api/jobs/$job/state
  curl -s $edge/api/jobs -H 'content-type: application/json' -d '{"kind": "demo", "input": {"words": 50}, "id": "mine"}'
  $tailwater tail mine --edge $edge --drop-after 10 --summary
NEXT
wait "$up" || true
die "tailwater up ended: $(cat "$dir/up.err")"
