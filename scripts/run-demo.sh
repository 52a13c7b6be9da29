#!/usr/bin/env bash
# Builds Tailwater, starts all of it on free ports, runs a real program as a job, and follows the job as a client whose
# connection is cut in the middle. Says what the client counted, compares what it received with what the program writes,
# and stays up for you to try more; Ctrl-C stops all of it.
#   --check   end after the proof: 0 when all of it holds, 1 when not. Takes half a minute and the build.
# What it makes is in a temporary directory that it removes, in target/, and in .tools/ when there is no nats-server.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }
die() { printf 'run-demo.sh: %s\n' "$*" >&2; exit 1; }

check=
case "${1:-} $#" in
  " 0") ;;
  "--check 1") check=1 ;;
  *) printf 'usage: scripts/run-demo.sh [--check]\n' >&2; exit 64 ;;
esac
command -v cargo >/dev/null ||
  die "Rust is missing. Install it with rustup, which then takes the version that rust-toolchain.toml names."

# Every flag of `tailwater` is a variable, too: one that is set for other purposes must not point the demo elsewhere.
for name in ${!TAILWATER_@}; do unset "$name"; done

# The dev profile, because the first build of the release profile takes several times as long.
say "builds (some minutes the first time)"
cargo build --locked
tailwater=${CARGO_TARGET_DIR:-target}/debug/tailwater
[[ -x $tailwater ]] || die "cargo built no $tailwater."
NATS_SERVER=$(scripts/nats-server.sh)
export NATS_SERVER

dir=$(mktemp -d "${TMPDIR:-/tmp}/tailwater-demo.XXXXXX")
children=()

# Ends what was started here, in the order of starting: first asks, then insists.
cleanup() {
  local pid i
  for pid in ${children[@]+"${children[@]}"}; do
    kill -TERM "$pid" 2>/dev/null || continue
    for ((i = 0; i < 100; i++)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# until_true SECONDS MESSAGE COMMAND...: waits for COMMAND to succeed; MESSAGE is what to say when it does not in time.
until_true() {
  local deadline=$((SECONDS + $1)) message=$2
  shift 2
  until "$@"; do
    ((SECONDS < deadline)) || die "$message"
    sleep 0.1
  done
}
has_ended() { ! kill -0 "$1" 2>/dev/null; }

# The job: numbers the lines of the README and writes one every 25 ms, as slowly as a model writes.
readonly file=README.md
number() { awk '{ printf "%4d  %s\n", NR, $0 }' "$1"; }
readonly slowly='awk "{ printf \"%4d  %s\\n\", NR, \$0 }" "$1" |
  while IFS= read -r line; do printf "%s\n" "$line"; sleep 0.025; done'
number "$file" >"$dir/expected"

say "tailwater up: a NATS server, an edge, and workers for the kinds demo and exec"
# In a process group of its own: Ctrl-C is for this script, which then stops it in order.
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
until_true 60 "tailwater up was not ready in time: $(cat "$dir/up.err")" is_up
nats=$(sed -n 's/^nats //p' "$dir/up.out")
edge=$(sed -n 's/^ready //p' "$dir/up.out")
printf 'nats %s\nedge %s\n' "$nats" "$edge"

say "submits the job, follows it over WebSocket, and cuts the connection after 30 events"
job=$("$tailwater" submit --kind exec --id numbered-readme --nats "$nats")
mkfifo "$dir/shown"
tee "$dir/received" <"$dir/shown" &
tee=$!
"$tailwater" tail "$job" --edge "$edge" --drop-after 30 --summary >"$dir/shown" 2>"$dir/client.err" &
client=$!
children+=("$client" "$tee")
until_true 90 "the job did not end in time." has_ended "$client"
wait "$client" || die "the client failed: $(cat "$dir/client.err")"
wait "$tee"

say "what the client counted"
summary=$(grep '^chunks ' "$dir/client.err") || die "the client gave no summary: $(cat "$dir/client.err")"
printf '%s\n' "$summary"
[[ $summary =~ ^chunks\ [0-9]+\ ·\ missing\ 0\ ·\ duplicated\ 0\ ·\ resumed\ at\ seq\ 31$ ]] ||
  die "it should say: missing 0, duplicated 0, resumed once, at seq 31."
cmp "$dir/expected" "$dir/received" || die "what the client received is not what the program writes."
printf 'received %d bytes, each as the program writes it\n' "$(wc -c <"$dir/received")"

[[ -z $check ]] || exit 0

trap 'exit 0' INT TERM HUP
say "stays up: $edge (Ctrl-C stops all of it). In another terminal, for example:"
cat <<NEXT
  $tailwater submit --kind demo --input '{"words": 200, "rate": 20}' --watch --nats $nats
  $tailwater tail $job --edge $edge --after 100
  curl -s $edge/api/jobs/$job/state
  curl -s $edge/api/jobs -H 'content-type: application/json' -d '{"kind": "demo", "input": {"words": 50}, "id": "mine"}'
  $tailwater tail mine --edge $edge --drop-after 10 --summary
NEXT
wait "$up" || true
die "tailwater up ended: $(cat "$dir/up.err")"
