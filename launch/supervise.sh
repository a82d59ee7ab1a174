#!/usr/bin/env bash
# Runs a command, and starts it again when it was killed. An error that the command tells itself
# (status 1 or 2) would come again, and ends it.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/supervise.sh [options] -- COMMAND [ARGUMENT...]

Run COMMAND; when a signal killed it (out of memory, a lost device, a reset host process), wait and
run it again. `aya run` then goes on from its last checkpoint. Ends with COMMAND's own status.

  --restarts N   at most so many restarts (default 10)
  --wait S       seconds before a restart (default 10)
  --dry-run      print the command and do nothing
  --help         this text
TEXT
}

restarts=10 pause=10
while (($#)); do
  case "$1" in
    --restarts) value "$@"; restarts="$2"; shift 2 ;;
    --wait) value "$@"; pause="$2"; shift 2 ;;
    --dry-run) DRY_RUN=true; shift ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument '$1'; the command comes after --" ;;
  esac
done
(($#)) || fail "COMMAND is missing; give it after --"
whole_number --restarts "$restarts"
whole_number --wait "$pause"

if "$DRY_RUN"; then
  show "$@"
  exit 0
fi

# We are stopped: so is the command, and it is not started again. An interrupt from the terminal
# reaches the command by itself.
stopped=false child=''
# shellcheck disable=SC2317,SC2329 # the trap below calls it
stop() {
  stopped=true
  if [[ -n "$child" ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM HUP
trap 'stopped=true' INT

count=0
while :; do
  # A shell makes its background commands deaf to interrupts; ours shall hear them.
  env --default-signal=INT "$@" <&0 &
  child=$!
  while :; do
    status=0
    wait "$child" || status=$?
    # A signal to us ends `wait` early; the command is done only when it is gone.
    kill -0 "$child" 2>/dev/null || break
  done
  child=''
  if "$stopped" || ((status <= 128 || status == 130)); then exit "$status"; fi
  if ((count >= restarts)); then
    printf 'supervise.sh: killed with status %d; no restart is left of %d\n' "$status" "$restarts" >&2
    exit "$status"
  fi
  count=$((count + 1))
  printf 'supervise.sh: killed with status %d; restart %d of %d in %d s\n' \
    "$status" "$count" "$restarts" "$pause" >&2
  sleep "$pause" || true
  if "$stopped"; then exit "$status"; fi
done
