#!/usr/bin/env bash
# Starts Prometheus with ops/prometheus.yml and ops/alerts.yaml beside a running edge and workers with jobs, and checks that
# it scrapes each of them, evaluates every alert, knows every metric that the alerts and the dashboard name, and answers
# every query of the dashboard; then ends a worker, which must raise an alert. Of the configuration, only the addresses
# and the intervals differ, so that this needs no DNS and no minute. Needs cargo, curl and python3, and the Prometheus that
# scripts/prometheus.sh finds or downloads; takes a minute and the build. Prints a line per check, and the counts as the
# last line. scripts/compose-test.sh --observe tests the containers instead.
# shellcheck disable=SC2329 # many functions are only called through `check` and `until_true`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/checks.sh
source scripts/checks.sh

(($# == 0)) || { printf 'usage: scripts/observe-test.sh\n' >&2; exit 64; }
for program in cargo curl python3 timeout; do
  command -v "$program" >/dev/null || die "$program is missing."
done

# Every flag of `tailwater` is also a variable. Variables set for another purpose must not change what runs.
for name in ${!TAILWATER_@}; do unset "$name"; done

prometheus_program=$(scripts/prometheus.sh prometheus)
cargo build --locked
tailwater=${CARGO_TARGET_DIR:-target}/debug/tailwater
[[ -x $tailwater ]] || die "cargo did not build $tailwater."
NATS_SERVER=$(scripts/nats-server.sh)
export NATS_SERVER

scratch=$(mktemp -d)
readonly scratch
children=()

finish() {
  local code=$? i log
  trap '' INT TERM HUP
  # The broker, which `up` started, last: the others then end without waiting for it.
  for ((i = ${#children[@]} - 1; i >= 0; i--)); do stop "${children[i]}"; done
  check_exit "$code"
  if ((code != 0)); then
    for log in "$scratch"/*.err; do
      printf -- '--- %s\n' "${log##*/}"
      tail -n 15 "$log"
    done >&2
  fi
  rm -rf "$scratch"
  # Always the last line.
  printf '%d passed, %d failed\n' "$passed" "$failed"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# start NAME COMMAND...: in a process group of its own, so that Ctrl-C reaches only this script, which then ends it in order.
start() {
  local name=$1
  shift
  set -m
  "$@" >"$scratch/$name.out" 2>"$scratch/$name.err" </dev/null &
  children+=("$!")
  set +m
}
# printed NAME PREFIX: sets `value` to the rest of the first line with this prefix.
printed() {
  value=$(sed -n "s|^$2||p" "$scratch/$1.out" 2>/dev/null | head -n 1)
  [[ -n $value ]]
}

# ---- the system

start up "$tailwater" up --listen 127.0.0.1:0 --data-dir "$scratch/data"
until_true 60 printed up 'nats ' || bail "tailwater up starts NATS"
nats=$value
until_true 60 printed up 'ready ' || bail "tailwater up starts an edge"
edge=$value

start words "$tailwater" worker --nats "$nats" --kind words --metrics 127.0.0.1:0 demo
start fails "$tailwater" worker --nats "$nats" --kind fails --metrics 127.0.0.1:0 exec -- false
failing=${children[-1]}
until_true 30 printed words 'metrics http://' || bail "a worker serves metrics"
words=${value%/metrics}
until_true 30 printed fails 'metrics http://' || bail "another worker serves metrics"
fails=${value%/metrics}

# Fails until the worker has declared its kind; repeating it is harmless.
submit() {
  http -f -o /dev/null -H 'content-type: application/json' "$edge/api/jobs" \
    -d "{\"kind\": \"$1\", \"id\": \"$1\", \"input\": {\"words\": 20, \"rate\": 20, \"seed\": 1}}"
}
for kind in words fails; do until_true 30 submit "$kind" || bail "a job of the kind $kind is accepted"; done
timeout 30 "$tailwater" tail words --edge "$edge" >/dev/null 2>"$scratch/tail.err" || bail "the job of the kind words can be followed"
has_failed() { http "$edge/api/jobs/fails/state" | grep -q '"status":"failed"'; }
until_true 60 has_failed || bail "the job of the kind fails fails"

# ---- Prometheus, with the configuration of this repository

python3 - "$scratch/prometheus.yml" "${edge#http://}" "$words" "$fails" <<'PY'
import pathlib, sys
target, edge, *workers = sys.argv[1:]
text = pathlib.Path("ops/prometheus.yml").read_text()
def replace(old, new):
    global text
    assert text.count(old) == 1, f"ops/prometheus.yml has {old!r} {text.count(old)} times"
    text = text.replace(old, new)
replace("{names: [edge], type: A, port: 4000, refresh_interval: 10s}", f"{{targets: ['{edge}']}}")
replace("{names: [worker, worker-exec], type: A, port: 9464, refresh_interval: 10s}", f"{{targets: {workers}}}")
replace("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s")
replace("/etc/prometheus/alerts.yaml", f"'{pathlib.Path('ops/alerts.yaml').resolve()}'")
text = text.replace("dns_sd_configs:", "static_configs:")
pathlib.Path(target).write_text(text)
PY

port=$(free_port)
readonly prometheus=http://127.0.0.1:$port
start prometheus "$prometheus_program" --config.file="$scratch/prometheus.yml" --storage.tsdb.path="$scratch/tsdb" \
  --web.listen-address="127.0.0.1:$port"
is_ready() {
  has_ended "${children[-1]}" && bail "Prometheus runs"
  http -f -o /dev/null "$prometheus/-/ready"
}
until_true 60 is_ready || bail "Prometheus is ready"
pass "Prometheus starts with the configuration"

# ask WHAT: one check of what Prometheus answers. Its complaints are kept for the case that it never succeeds.
ask() {
  python3 - "$prometheus" "$1" 2>"$scratch/ask-$1.err" <<'PY'
import json, pathlib, re, sys, urllib.parse, urllib.request

base, what = sys.argv[1:]
# No proxy of this machine's settings.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def get(path, **query):
    with opener.open(f"{base}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        answer = json.load(answer)
    assert answer["status"] == "success", answer
    return answer["data"]

alerts = pathlib.Path("ops/alerts.yaml").read_text()
dashboards = [json.loads(path.read_text()) for path in pathlib.Path("ops/grafana").glob("*.json")]
panels = [panel for dashboard in dashboards for panel in dashboard["panels"]]
queries = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]
assert len(queries) > 20, f"{len(queries)} queries: panels are written otherwise now"

if what == "targets":
    found = sorted((target["labels"]["job"], target["health"]) for target in get("targets", state="active")["activeTargets"])
    expected = [("tailwater-edge", "up")] + [("tailwater-worker", "up")] * 2
    assert found == expected, found
elif what == "alerts":
    declared = re.findall(r"- alert: (\w+)", alerts)
    rules = [rule for group in get("rules")["groups"] for rule in group["rules"]]
    assert declared and [rule["name"] for rule in rules] == declared, rules
    # `unknown` until the first evaluation.
    bad = [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"]
    assert not bad, bad
elif what == "metrics":
    named = set(re.findall(r"\btailwater_[a-z_]+", alerts + " ".join(expr for _, expr in queries)))
    missing = named - set(get("label/__name__/values"))
    assert len(named) > 20 and not missing, missing
elif what == "panels":
    for title, expr in queries:
        result = get("query", query=expr.replace("$__rate_interval", "1m"))["result"]
        # No worker here takes over the job of another.
        assert result or 'outcome="superseded"' in expr, f"{title}: no data for {expr}"
elif what == "down":
    found = [(alert["labels"]["alertname"], alert["labels"].get("job")) for alert in get("alerts")["alerts"]]
    assert ("TailwaterDown", "tailwater-worker") in found, found
else:
    raise SystemExit(f"no check is named {what}")
PY
}
# Some of the dashboard shows only what changes: a refusal, for one.
ask_panels() {
  http -o /dev/null "$edge/api/jobs/no-such-job" || true
  ask panels
}
check "Prometheus scrapes the edge and both workers" until_true 30 ask targets
check "Prometheus evaluates every alert" until_true 30 ask alerts
check "every metric of the alerts and the dashboard is there" until_true 30 ask metrics
check "every query of the dashboard has data" until_true 60 ask_panels
stop "$failing"
check "a worker that does not answer raises an alert" until_true 30 ask down

((failed == 0))
