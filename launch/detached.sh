#!/usr/bin/env bash
# Runs a command that outlives the connection that started it, and follows it.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/detached.sh [options] FOLDER -- COMMAND [ARGUMENT...]
       launch/detached.sh --follow | --stop | --busy FOLDER

Start COMMAND apart from this terminal, write what it says to FOLDER/log, and follow that until it
ends; end with its status. While it runs, the same call follows it and starts nothing. When the
connection is lost or interrupted, COMMAND runs on.

  --follow     show FOLDER/log, and follow it while the command runs
  --stop       send SIGTERM, and wait for the end; the command's status is then 130
  --busy       end with status 0 if a command runs, else 1
  --dry-run    print the command and do nothing
  --help       this text
TEXT
}

# shellcheck disable=SC2034 # read by their names
follow=false stop=false busy=false
action=run
options '' 'follow stop busy' "$@"
set -- ${rest[@]+"${rest[@]}"}
for each in follow stop busy; do
  if "${!each}"; then action="$each"; fi
done
((${#positional[@]} >= 1)) || fail "FOLDER is missing, for example runs/detached"
((${#positional[@]} == 1)) || fail "unexpected '${positional[1]}'; the command comes after --"
[[ "$action" != run ]] || (($#)) || fail "COMMAND is missing; give it after --"
folder="${positional[0]}"

if "$DRY_RUN"; then
  if [[ "$action" == run ]]; then show "$@"; fi
  exit 0
fi

# Whoever watches over the command holds this lock until it is gone.
mkdir -p "$folder"
touch "$folder/log"
busy() { ! (flock --nonblock 9) 9>>"$folder/lock"; }

# The process that watches, or watched.
watcher() {
  while busy && [[ ! -s "$folder/pid" ]]; do sleep 0.1; done
  [[ -s "$folder/pid" ]] || fail "nothing has run in $folder"
  cat "$folder/pid"
}

# follow FROM: the log from a byte or so many lines before its end, until the command is gone.
follow() {
  local process
  process="$(watcher)"
  tail "$@" --pid="$process" --follow "$folder/log"
}

start() {
  rm -f "$folder/pid" "$folder/status" "$folder/stopped"
  # shellcheck disable=SC2016 # the inner shell expands them
  setsid bash -c '
    . "$1"
    folder="$2" child=""
    shift 2
    trap "kill -TERM \$child 2>/dev/null" TERM
    "$@" 9>&- &
    child=$!
    echo $$ >"$folder/pid"
    await "$child"
    if [[ -e "$folder/stopped" ]]; then status=130; fi
    echo "$status" >"$folder/status"
  ' bash "$ROOT/launch/common.sh" "$folder" "$@" </dev/null >>"$folder/log" 2>&1 &
}

case "$action" in
  busy) busy ;;
  follow) follow --bytes=+1 ;;
  stop)
    busy || exit 0
    touch "$folder/stopped"
    process="$(watcher)"
    kill -TERM "$process" || true
    follow --lines=20
    ;;
  run)
    from=--lines=20
    exec 9>>"$folder/lock"
    # Another process may have the lock for a moment, to see whether it is free.
    if flock --wait 1 9; then
      from="--bytes=+$(($(stat --format=%s "$folder/log") + 1))"
      start "$@"
    fi
    exec 9>&-
    follow "$from"
    # A command that was killed together with all that watched it left no status.
    if [[ -s "$folder/status" ]]; then exit "$(<"$folder/status")"; else exit 137; fi
    ;;
esac
