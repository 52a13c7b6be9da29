#!/usr/bin/env bash
# Runs the fuzz targets in fuzz/ one after another, with inputs that libFuzzer makes, and adds what reaches new code to
# fuzz/corpus. Needs a C++ compiler. Ends with 1 at the first finding, whose input it leaves in fuzz/artifacts: move it to the
# corpus once it is fixed. It also ends with 1 if a target does not exist, or did not run for the whole time.
#   SECONDS     how long each target runs; 600 by default
#   TARGET...   run only these targets
# `cargo fuzz run TARGET` works as well, with a nightly toolchain.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"

die() { printf 'fuzz.sh: %s\n' "$*" >&2; exit 1; }

seconds=600
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  # Without a limit, libFuzzer would never end.
  ((10#$1 > 0)) || die "each target must run for at least a second."
  seconds=$((10#$1))
  shift
fi
if (($#)); then
  targets=("$@")
else
  mapfile -t targets < <(cd fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
fi
for target in "${targets[@]}"; do
  [[ -f fuzz_targets/$target.rs ]] || die "there is no target '$target' in fuzz/fuzz_targets."
done
host=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz sets, without a sanitizer: the crate forbids unsafe code. With --target, build scripts are not instrumented.
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --release --locked --target "$host" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
  program=${CARGO_TARGET_DIR:-target}/$host/release/$target
  [[ -x $program ]] || die "cargo did not build $target: is it in fuzz/Cargo.toml?"
  mkdir -p "corpus/$target" "artifacts/$target"
  printf '%s: %s s\n' "$target" "$seconds"
  code=0
  # Inputs that other targets found may be new here, but only small ones are kept in git.
  "$program" "corpus/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix="artifacts/$target/" -print_final_stats=1 >"$log" 2>&1 || code=$?
  sed -nE '/ERROR|SUMMARY|panicked|stat::|DONE.*cov:|Test unit/p' "$log"
  [[ -z $(ls -A "artifacts/$target") ]] || die "finding: fuzz/artifacts/$target"
  # What libFuzzer prints last: `Done 1234 runs in 61 second(s)`.
  ran=$(sed -nE 's/^Done [0-9]+ runs in ([0-9]+) second.*/\1/p' "$log" | tail -n 1)
  if ((code != 0 || ${ran:-0} < seconds)); then
    tail -n 20 "$log" >&2
    die "$target ran for ${ran:-0} of $seconds s, and ended with exit code $code."
  fi
done
