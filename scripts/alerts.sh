#!/usr/bin/env bash
# Checks ops/alerts.yaml and ops/prometheus.yml, and runs the tests of the alerts, with promtool: the one that
# scripts/prometheus.sh finds or downloads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

promtool=$(scripts/prometheus.sh promtool)

"$promtool" check config --syntax-only ops/prometheus.yml
"$promtool" check rules ops/alerts.yaml
"$promtool" test rules ops/alerts-test.yaml
