#!/usr/bin/env bash
# Runs a command, and starts it again when it ended in a way after which it goes on.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/supervise.sh [options] -- COMMAND [ARGUMENT...]

Run COMMAND; when a signal killed it (out of memory, a lost device), or it ended with status 75
(preempted, saved), 76 (stuck) or 77 (another process was lost), wait and run it again: `aya run` then
goes on from its last checkpoint. Any other end is the end. SIGTERM is passed on to COMMAND, which is
then not run again. Ends with COMMAND's own status.

  --restarts N   at most so many restarts (default 10)
  --wait S       seconds before a restart (default 10)
  --dry-run      print the command and do nothing
  --help         this text
TEXT
}

restarts=10 wait=10
options 'restarts wait' '' "$@"
set -- ${rest[@]+"${rest[@]}"}
((${#positional[@]} == 0)) || fail "unknown argument '${positional[0]}'; the command comes after --"
(($#)) || fail "COMMAND is missing; give it after --"
whole_number --restarts "$restarts"
whole_number --wait "$wait"

if "$DRY_RUN"; then
  show "$@"
  exit 0
fi

# We are stopped: so is what we wait for, and nothing is started again. An interrupt from the terminal
# reaches the command by itself.
stopped=false child='' status=0
stop() {
  stopped=true
  if [[ -n "$child" ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM HUP
trap 'stopped=true' INT

# Run something to its end; its status is then in `status`.
attend() {
  "$@" <&0 &
  child=$!
  # Stopped before there was a child to tell.
  if "$stopped"; then stop; fi
  await "$child"
}

count=0
while :; do
  # A shell makes its background commands deaf to interrupts; ours shall hear them.
  attend env --default-signal=INT "$@"
  ended=$status
  if "$stopped" || ! goes_on "$ended"; then exit "$ended"; fi
  if ((count >= restarts)); then
    printf 'supervise.sh: ended with status %d; no restart is left of %d\n' "$ended" "$restarts" >&2
    exit "$ended"
  fi
  count=$((count + 1))
  printf 'supervise.sh: ended with status %d; restart %d of %d in %d s\n' \
    "$ended" "$count" "$restarts" "$wait" >&2
  attend sleep "$wait"
  if "$stopped"; then exit "$ended"; fi
done
