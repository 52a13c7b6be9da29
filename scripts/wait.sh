# shellcheck shell=bash
# Other scripts source this.

# until_true SECONDS COMMAND...: repeats COMMAND until it succeeds; returns 1 if it does not in time.
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}
