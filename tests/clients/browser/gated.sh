#!/usr/bin/env bash
# gated.sh GATE PROGRAM...: runs a program that writes words, and passes on eight of them, and the others once the file
# GATE exists, at the latest after three minutes.
set -euo pipefail
gate=$1
shift
"$@" | {
  for ((n = 1; n <= 8; n++)); do
    read -r -d ' ' word
    printf '%s ' "$word"
  done
  for ((n = 1; n <= 3600; n++)); do
    [[ ! -e $gate ]] || break
    sleep 0.05
  done
  cat
}
