#!/usr/bin/env bash
# Checks ops/alerts.yaml and ops/prometheus.yml, and runs the tests of the alerts, with promtool: the one on PATH, or in
# .tools/, or else the one of the Debian package `prometheus`, which it puts into .tools/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'alerts.sh: %s\n' "$*" >&2; exit 1; }

promtool=$(command -v promtool || true)
if [[ -z $promtool && -x .tools/promtool ]]; then
  promtool=.tools/promtool
elif [[ -z $promtool ]]; then
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "promtool is missing. It is part of Prometheus: https://prometheus.io/download/"
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  (cd "$folder" && timeout 300 apt-get -qq download prometheus >/dev/null) ||
    die "the package prometheus could not be downloaded: run apt-get update, or put promtool on PATH."
  dpkg-deb -x "$folder"/prometheus_*.deb "$folder"
  mkdir -p .tools
  install -m 755 "$folder/usr/bin/promtool" .tools/promtool
  promtool=.tools/promtool
fi

"$promtool" check config --syntax-only ops/prometheus.yml
"$promtool" check rules ops/alerts.yaml
"$promtool" test rules ops/alerts-test.yaml
