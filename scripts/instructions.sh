#!/usr/bin/env bash
# Counts the instructions that a fixed scenario takes, in the parts of benches/src/lib.rs: encode, decode, stitch and fan
# out a recorded job. Unlike times, the counts are the same on a busy machine. Fails if one differs from its reference in
# benches/instructions.txt by more than 5 %. Needs valgrind, which it installs as a system package if it runs as root.
#   --update   write the counts of this tree as the new reference
# A count that changes on purpose, down or up: run this with --update, commit the file with the change, and say in the
# commit why. A new toolchain or dependency may also change counts; then update them in the commit that brings it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly reference=benches/instructions.txt tolerance=5

die() { printf 'instructions.sh: %s\n' "$*" >&2; exit 1; }

[[ $# == 0 || $* == --update ]] || die "usage: scripts/instructions.sh [--update]"
if ! command -v valgrind >/dev/null; then
  command -v apt-get >/dev/null && [[ $(id -u) == 0 ]] || die "valgrind is missing. On Debian and Ubuntu: apt install valgrind."
  { timeout 300 apt-get update -qq && timeout 300 apt-get install -yqq --no-install-recommends valgrind; } >&2
fi

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/benches
cargo build --quiet --release --locked --manifest-path benches/Cargo.toml --bin instructions
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
: >"$work/counts"
for part in encode decode stitch fan_out; do
  timeout 120 valgrind --tool=callgrind --callgrind-out-file="$work/$part" --collect-atstart=no \
    --toggle-collect="tailwater_benches::$part" "$CARGO_TARGET_DIR/release/instructions" >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; die "valgrind failed."; }
  count=$(awk '$1 == "totals:" || $1 == "summary:" { print $2; exit }' "$work/$part")
  ((count > 10000)) || die "nothing was counted for $part: its function has another name."
  printf '%s %s\n' "$part" "$count" >>"$work/counts"
  known=$(awk -v part="$part" '$1 == part { print $2 }' $reference 2>/dev/null || true)
  awk -v part="$part" -v count="$count" -v known="${known:-0}" -v tolerance=$tolerance 'BEGIN {
    change = known ? (count / known - 1) * 100 : 100
    printf "%-8s %11d instructions, reference %11d: %+.1f %%\n", part, count, known, change
    exit change > tolerance || change < -tolerance
  }' || failed=1
done
if [[ $* == --update ]]; then
  cp "$work/counts" $reference
elif ((failed)); then
  die "a count differs by more than $tolerance %. If that is intended, run scripts/instructions.sh --update and say why in the commit."
fi
