#!/usr/bin/env bash
# Builds the stack of compose.yaml, starts it under its own project name, and restarts each container in the middle of
# running jobs: the output of each job must equal that of the same job without a restart. Needs docker with compose, curl
# and python3; takes about seven minutes and the build. Prints a line per check, and the counts as the last line.
#   --observe [SERVICE...]      also starts these services of the profile `observe` at the end, and looks at what they show; by
#                               default prometheus and grafana, whose images must be there or in reach
#   EDGE_PORT                   the edge's port on this machine; by default a free one
#   COMPOSE_BUILD_NETWORK=host  builds in the host's network, if the default network reaches no package registry
# shellcheck disable=SC2329 # many functions are only called through `check` and `until_true`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/checks.sh
source scripts/checks.sh

observed=()
if [[ ${1:-} == --observe ]]; then
  shift
  (($#)) || set -- prometheus grafana
  observed=("$@")
elif (($#)); then
  printf 'usage: scripts/compose-test.sh [--observe [SERVICE...]]\n' >&2
  exit 64
fi
for program in docker curl python3 timeout; do
  command -v "$program" >/dev/null || die "$program is missing."
done
if docker compose version >/dev/null 2>&1; then compose=(docker compose)
elif command -v docker-compose >/dev/null; then compose=(docker-compose)
else die "docker compose is missing."
fi
timeout 20 docker info >/dev/null 2>&1 || die "the docker daemon does not answer."

export EDGE_PORT=${EDGE_PORT:-$(free_port)}
PROMETHEUS_PORT=$(free_port) GRAFANA_PORT=$(free_port)
export PROMETHEUS_PORT GRAFANA_PORT
# Its own name, so that it does not replace an image in use on this machine.
export TAILWATER_IMAGE=tailwater:compose-test
readonly base=http://127.0.0.1:$EDGE_PORT
scratch=$(mktemp -d)
readonly scratch project=tailwater-test-$$
files=(-f compose.yaml)
if [[ -n ${COMPOSE_BUILD_NETWORK:-} ]]; then
  printf 'services:\n  keys:\n    build:\n      network: "%s"\n' "$COMPOSE_BUILD_NETWORK" >"$scratch/build.yaml"
  files+=(-f "$scratch/build.yaml")
fi

# compose SECONDS ARGUMENT...: one call with a time limit. Its messages are kept, and shown after a failure.
compose() {
  local seconds=$1
  shift
  timeout --kill-after=10 "$seconds" "${compose[@]}" --project-directory . -p "$project" "${files[@]}" "$@" \
    2>>"$scratch/compose.log"
}

finish() {
  local code=$?
  trap '' INT TERM
  check_exit "$code"
  if ((code != 0)); then
    {
      printf -- '--- last messages of compose\n'
      tail -n 30 "$scratch/compose.log"
      printf -- '--- last messages of the containers\n'
      compose 60 ps
      compose 60 logs --no-color --tail=40
    } >&2 || true
  fi
  compose 180 --profile observe down -v --remove-orphans --timeout 5 >/dev/null || true
  rm -rf "$scratch"
  # Always the last line.
  printf '%d passed, %d failed\n' "$passed" "$failed"
}
trap finish EXIT
trap 'exit 130' INT TERM

ready() { http -f -o /dev/null "$base/readyz"; }

# Writes a job's state to a file. Fails while the edge is down.
fetch() { http -f -o "$scratch/$1.json" "$base/api/jobs/$1/state"; }
# state ID EXPRESSION: a Python expression over the fetched state `s`.
state() { python3 -c 'import json, sys; s = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$scratch/$1.json" "$2"; }
is() { fetch "$1" && [[ $(state "$1" "$2") == True ]]; }

# Tries to submit once; 200 means that an earlier try was stored although its answer was lost.
try_submit() {
  local kind=$1 id=$2 status
  printf '{"kind":"%s","id":"%s","input":%s}' "$kind" "$id" "$(cat "$scratch/$kind.input")" >"$scratch/$id.body"
  status=$(http -o "$scratch/$id.answer" -w '%{http_code}' -H 'content-type: application/json' \
    --data-binary "@$scratch/$id.body" "$base/api/jobs") || return 1
  [[ $status == 202 || $status == 200 ]]
}
submit() { until_true 90 try_submit "$@" || bail "job $2 was not accepted: $(cat "$scratch/$2.answer" 2>/dev/null)"; }

# ends ID SECONDS: waits until the job is done, and writes its output to ID.out.
ends() {
  until_true "$2" is "$1" 's["status"] in ("done", "failed", "cancelled")' || return 1
  [[ $(state "$1" 's["status"]') == "done" ]] &&
    python3 -c 'import json, sys; sys.stdout.write(json.load(open(sys.argv[1]))["output"])' "$scratch/$1.json" >"$scratch/$1.out"
}
same() { [[ -s $scratch/$1.out ]] && cmp -s "$scratch/$1.out" "$scratch/$2.out"; }

# Both jobs take about 24 seconds: longer than a stopping worker waits for its jobs (10 s), so that it must hand its job
# over.
printf '{"words":360,"rate":15,"seed":7}' >"$scratch/demo.input"
python3 - "$scratch" <<'PY'
import collections, json, sys
letters = "abcdefgh"
words = [a + b for a in letters for b in letters] + [a + "Zz" for a in letters * 2] + [a * 3 + "q" + b for a in "mno" for b in letters]
text = ", ".join(words * 2 + words[::3]) + "."
counts = collections.Counter(word.lower() for word in words * 2 + words[::3])
lines = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
open(sys.argv[1] + "/exec.input", "w").write(json.dumps(text))
open(sys.argv[1] + "/expected.out", "w").write("".join(f"{count:6d} {word}\n" for word, count in lines))
PY

# ---- start

check "the file is valid, with the profile observe" compose 60 --profile observe config --quiet
compose 2400 build >"$scratch/build.log" 2>&1 || { tail -n 40 "$scratch/build.log" >&2; bail "the image builds"; }
pass "the image builds"
compose 300 up -d --no-build >/dev/null || bail "the stack starts"
check "the stack starts" until_true 60 ready

# ---- undisturbed

submit demo demo-ref
submit exec exec-ref
check "a submission is answered with its id, kind and status" python3 -c '
import json, sys
a = json.load(open(sys.argv[1]))
sys.exit((a["id"], a["kind"], a["status"] in ("queued", "running")) != ("demo-ref", "demo", True))' "$scratch/demo-ref.answer"
check "a demo job ends" ends demo-ref 90
check "an exec job ends" ends exec-ref 90
check "the exec job's output is correct" same exec-ref expected
[[ -s $scratch/demo-ref.out && -s $scratch/exec-ref.out ]] || bail "there are outputs to compare with"

# ---- disturbed: disturb NAME KINDS-TAKEN-OVER COMMAND...

under_way() { is "$1" 's["status"] == "running" and s["seq"] >= 6'; }
disturb() {
  local name=$1 moved=$2 kind
  shift 2
  for kind in demo exec; do submit "$kind" "$kind-$name"; done
  for kind in demo exec; do
    until_true 60 under_way "$kind-$name" || { fail "$name: the $kind job gets under way"; return; }
  done
  if ! "$@"; then fail "$name: the disturbance"; return; fi
  for kind in demo exec; do
    if ! ends "$kind-$name" 120; then
      fail "$name: the $kind job ends (state: $(head -c 300 "$scratch/$kind-$name.json" 2>/dev/null))"
      continue
    fi
    check "$name: the $kind job's output is the same" same "$kind-$name" "$kind-ref"
    # Otherwise a restart after the job's end would count as survived.
    if [[ $moved == *"$kind"* ]]; then
      check "$name: the $kind job was taken over" is "$kind-$name" 's["attempt"] >= 2'
    fi
  done
}
# Kills all processes of a container at once; the restart policy restarts it. Process 1 is the container's init.
crash() { compose 60 exec -T "$1" sh -c 'kill -KILL -1' >/dev/null || true; }
crash_workers() { crash worker; crash worker-exec; }
kill_worker() { compose 60 kill -s KILL worker >/dev/null && sleep 2 && compose 60 start worker >/dev/null; }

disturb restart-nats "" compose 120 restart nats
disturb restart-edge "" compose 120 restart edge
disturb restart-worker "demo" compose 120 restart worker
disturb restart-worker-exec "exec" compose 120 restart worker-exec
disturb crash-workers "demo exec" crash_workers
disturb kill-worker "demo" kill_worker
disturb stop-recorder "" compose 120 stop recorder

# ---- the recorder is still stopped

is_unavailable() { ! try_submit "$1" "$2" && grep -q '"unavailable"' "$scratch/$2.answer"; }
check "without a recorder, a submission is refused as unavailable" is_unavailable demo demo-recorded
compose 120 start recorder >/dev/null || bail "the recorder starts again"
submit demo demo-recorded
check "with the recorder, the same submission is accepted, and the job ends" ends demo-recorded 90
check "its output is the same" same demo-recorded demo-ref

# ---- three workers, one of which dies

running() { [[ $(compose 60 ps -q worker | xargs -r docker inspect -f '{{.State.Running}}' | grep -c true) == "$1" ]]; }
compose 300 up -d --no-build --no-recreate --scale worker=3 >/dev/null || bail "three workers start"
check "three workers start" until_true 60 running 3
many=(demo-many-{1..6})
for id in "${many[@]}"; do submit demo "$id"; done
for id in "${many[@]}"; do until_true 60 under_way "$id" || fail "$id gets under way"; done
mapfile -t workers < <(compose 60 ps -q worker)
timeout 60 docker kill "${workers[0]:-none}" >/dev/null || fail "one of three workers is killed"
all_same() {
  local id
  for id in "${many[@]}"; do ends "$id" 120 && same "$id" demo-ref || return 1; done
}
check "six jobs on three workers, one of them killed: each output is the same" all_same
check "two workers remain" running 2

# ---- what the profile `observe` shows

# Every edge and worker is scraped: an edge, two workers of the kind demo, one of the kind exec.
all_scraped() {
  http -f "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/query?query=up" | python3 -c '
import json, sys
up = [(one["metric"]["job"], one["value"][1]) for one in json.load(sys.stdin)["data"]["result"]]
sys.exit(sorted(up) != [("tailwater-edge", "1")] + [("tailwater-worker", "1")] * 3)'
}
has_alerts() {
  http -f "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/rules" | python3 -c '
import json, sys
rules = [rule for group in json.load(sys.stdin)["data"]["groups"] for rule in group["rules"]]
sys.exit(not rules or any(rule["health"] != "ok" for rule in rules))'
}
has_dashboard() { http -f -o /dev/null "http://127.0.0.1:$GRAFANA_PORT/api/dashboards/uid/tailwater"; }
if ((${#observed[@]})); then
  compose 900 --profile observe up -d --no-build --no-recreate --no-deps "${observed[@]}" >/dev/null || bail "${observed[*]} start"
fi
for service in ${observed[@]+"${observed[@]}"}; do
  case $service in
    prometheus)
      check "Prometheus scrapes every edge and worker" until_true 120 all_scraped
      check "Prometheus evaluates the alerts" until_true 120 has_alerts
      ;;
    grafana) check "Grafana has the dashboard" until_true 120 has_dashboard ;;
    *) fail "there is no check for $service" ;;
  esac
done

((failed == 0))
