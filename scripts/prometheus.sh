#!/usr/bin/env bash
# Prints the path of a program of Prometheus: `scripts/prometheus.sh promtool` or `scripts/prometheus.sh prometheus`. It is
# the one on PATH, or in the git-ignored .tools/, or else the one of the Debian package `prometheus`, which it puts into
# .tools/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'prometheus.sh: %s\n' "$*" >&2; exit 1; }

case "${1:-} $#" in
  "promtool 1" | "prometheus 1") program=$1 ;;
  *) printf 'usage: scripts/prometheus.sh promtool|prometheus\n' >&2; exit 64 ;;
esac
if found=$(type -P "$program"); then
  printf '%s\n' "$found"
  exit 0
fi
copy=$PWD/.tools/$program
if [[ ! -x $copy ]]; then
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "$program is missing. It is part of Prometheus: https://prometheus.io/download/"
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  (cd "$folder" && timeout 300 apt-get -qq download prometheus >/dev/null) ||
    die "the package prometheus could not be downloaded: run apt-get update, or put $program on PATH."
  dpkg-deb -x "$folder"/prometheus_*.deb "$folder"
  mkdir -p .tools
  install -m 755 "$folder/usr/bin/$program" "$copy"
fi
printf '%s\n' "$copy"
