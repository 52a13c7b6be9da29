# shellcheck shell=bash
# Other scripts source this: it counts checks, waits, ends processes, and asks over HTTP.

die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# How many checks have passed and failed.
passed=0 failed=0

pass() { passed=$((passed + 1)); printf 'ok    %s\n' "$*"; }
fail() { failed=$((failed + 1)); printf 'FAIL  %s\n' "$*"; }
# check WHAT COMMAND...: passes if COMMAND succeeds.
check() {
  local what=$1
  shift
  if "$@"; then pass "$what"; else fail "$what"; fi
}
# bail WHAT: fails a check that all later ones need, and ends the script.
bail() { fail "$*"; exit 1; }
# check_exit CODE: fails if the script ends with this code before a check has failed.
check_exit() { (($1 == 0 || failed > 0)) || fail "the script ended early (exit code $1)"; }

# until_true SECONDS COMMAND...: repeats COMMAND until it succeeds; returns 1 if it does not in time.
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

# has_ended PID: whether this child has ended.
has_ended() { ! kill -0 "$1" 2>/dev/null; }
# stop PID: ends a child with SIGTERM, and with SIGKILL if that is not enough.
stop() {
  kill -TERM "$1" 2>/dev/null || return 0
  until_true 20 has_ended "$1" || kill -KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

# http ARGUMENT...: curl with a time limit and without the proxies of this machine's settings.
http() { curl -s --noproxy '*' --connect-timeout 3 --max-time 15 "$@"; }
# A port that was free a moment ago.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
