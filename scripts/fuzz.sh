#!/usr/bin/env bash
# Runs the fuzz targets in fuzz/ one after another, with inputs that libFuzzer makes, and adds what reaches new code to
# fuzz/corpus. Needs a C++ compiler. Ends with 1 at the first finding, whose input it leaves in fuzz/artifacts: move it to the
# corpus once it is fixed.
#   SECONDS     how long each target runs; 600 by default
#   TARGET...   run only these targets
# `cargo fuzz run TARGET` works as well, with a nightly toolchain.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"

seconds=600
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
if (($#)); then
  targets=("$@")
else
  mapfile -t targets < <(cd fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
fi
host=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz sets, without a sanitizer: the crate forbids unsafe code. With --target, build scripts are not instrumented.
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --release --locked --target "$host" >&2
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target" "artifacts/$target"
  printf '%s: %s s\n' "$target" "$seconds"
  # Inputs that other targets found may be new here, but only small ones are kept in git.
  "target/$host/release/$target" "corpus/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix="artifacts/$target/" -print_final_stats=1 2>&1 | grep -E "ERROR|SUMMARY|panicked|stat::|cov:.*DONE|Test unit" || true
  if [[ -n $(ls -A "artifacts/$target") ]]; then
    printf 'finding: fuzz/artifacts/%s\n' "$target" >&2
    exit 1
  fi
done
