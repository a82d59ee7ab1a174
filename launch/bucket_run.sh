#!/usr/bin/env bash
# Runs a command whose run directory is kept in a bucket, for hosts whose disk dies with them.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/bucket_run.sh [options] BUCKET_DIR RUN_DIR -- COMMAND [ARGUMENT...]

Copy BUCKET_DIR (gs://...) to the folder RUN_DIR, run COMMAND, and copy RUN_DIR back every few minutes
and at the end. What was made since the last copy is lost with the host, and made again.

  --every S    seconds between copies (default 600)
  --dry-run    print the commands and do nothing
  --help       this text
TEXT
}

every=600
options 'every' '' "$@"
set -- ${rest[@]+"${rest[@]}"}
((${#positional[@]} >= 1)) || fail "BUCKET_DIR is missing, for example gs://mine/runs/8b"
((${#positional[@]} == 2)) || fail "RUN_DIR is missing, for example runs/8b"
(($#)) || fail "COMMAND is missing; give it after --"
bucket="${positional[0]%/}" run_dir="${positional[1]%/}"
[[ "$bucket" == gs://?* ]] || fail "BUCKET_DIR must begin with gs://, not '$bucket'"
local_folder "$run_dir"
whole_number --every "$every"

# run.json (of a run, or of each seed of a study) names the stages that are whole. It is taken before
# the stages and copied after them, so that the bucket never claims a stage that it does not hold.
taken() { find "$run_dir" -maxdepth 2 -name "$1" -print0; }

save() {
  local file destination
  if "$DRY_RUN"; then
    show cp "$run_dir/run.json" "$run_dir/run.json.taken"
  else
    while IFS= read -r -d '' file; do cp "$file" "$file.taken" || return; done < <(taken run.json)
  fi
  run gcloud storage rsync --recursive --delete-unmatched-destination-objects \
    '--exclude=(^|.*/)(run\.json|run\.json\.taken|lock)$' "$run_dir" "$bucket" || return
  if "$DRY_RUN"; then
    show gcloud storage cp "$run_dir/run.json.taken" "$bucket/run.json"
  else
    while IFS= read -r -d '' file; do
      destination="${file%.taken}"
      gcloud storage cp "$file" "$bucket${destination#"$run_dir"}" || return
    done < <(taken run.json.taken)
  fi
}

run mkdir -p "$run_dir"
name="${bucket#gs://}"
if "$DRY_RUN"; then
  show gcloud storage ls "$bucket/"
  show gcloud storage rsync --recursive "$bucket" "$run_dir"
  show "$@"
  save
  exit 0
fi
# A host that was not lost has the newer copy. Of a new run the bucket has none; any other failure to
# read the bucket must end us here, before an empty folder is copied over the run in it.
if [[ -z "$(ls -A "$run_dir")" ]]; then
  if gcloud storage ls "$bucket/" >/dev/null 2>&1; then
    gcloud storage rsync --recursive "$bucket" "$run_dir"
  elif gcloud storage ls "gs://${name%%/*}/" >/dev/null; then
    echo "bucket_run.sh: $bucket holds no run yet; a new one begins" >&2
  else
    fail "gs://${name%%/*} cannot be read; check its name and your rights"
  fi
fi

child=''
# shellcheck disable=SC2317,SC2329 # the trap below calls it
forward() { if [[ -n "$child" ]]; then kill -TERM "$child" 2>/dev/null || true; fi; }
trap forward TERM HUP
trap : INT
env --default-signal=INT "$@" <&0 &
child=$!
(
  # A copy under way when the run ends is finished first.
  nap=''
  trap 'kill "$nap" 2>/dev/null || true; exit 0' TERM
  trap '' INT HUP
  while :; do
    # One that outlives us, if the signal comes before its number is known, keeps nobody's pipe open.
    sleep "$every" >/dev/null 2>&1 &
    nap=$!
    wait "$nap" || true
    save >&2 || echo "bucket_run.sh: copying to $bucket failed; the next try is in $every s" >&2
  done
) &
copier=$!
await "$child"
kill "$copier" 2>/dev/null || true
wait "$copier" 2>/dev/null || true
if ! save >&2; then
  echo "bucket_run.sh: the last copy to $bucket failed; the run is in $run_dir" >&2
  if ((status == 0)); then status=1; fi
fi
exit "$status"
