#!/usr/bin/env bash
# Runs a recipe on a Cloud TPU VM slice: makes it, copies the project, installs, runs on every host,
# and makes the slice anew when it was preempted.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE [options] CONFIG RUN_DIR
                         [-- ARGUMENT_OF_AYA_RUN...]

Make the TPU slice NAME if it does not exist, copy the project there, install it, and run the recipe,
the same command on every host. A slice that was preempted is deleted and made anew. The same command
line goes on with a run that was interrupted. RUN_DIR is gs://BUCKET/FOLDER, which outlives the slice,
or a folder on the hosts, which does not.

  --name NAME          of the slice
  --zone ZONE          such as us-west4-a
  --type TYPE          accelerator type, such as v5litepod-8, v5p-8, v6e-8
  --project PROJECT    Google Cloud project (default: gcloud's own)
  --version VERSION    runtime version of the TPU (default: by TYPE)
  --spot               cheaper, may be preempted
  --before COMMAND     run in the project's folder on every host first; to fetch models and data
  --every S            seconds between copies to the bucket (default 600)
  --attempts N         how often a slice is made at most (default 20)
  --wait S             seconds between attempts (default 60)
  --python VERSION     Python on the hosts (default 3.12)
  --delete             delete the slice when the run has ended well
  --allow-multi-host   go on although TYPE has several hosts; the run loop cannot drive them yet
  --dry-run            print the commands and do nothing
  --help               this text

example:
  launch/tpu_pod.sh --name aya --zone us-west4-a --type v5litepod-4 --spot \
    configs/recipes/tiny.gin gs://mine/runs/tiny
TEXT
}

name='' zone='' type='' project='' version='' spot=false before='' every=600 attempts=20 pause=60
python=3.12 delete=false multi_host=false
positional=()
while (($#)); do
  case "$1" in
    --name) value "$@"; name="$2"; shift 2 ;;
    --zone) value "$@"; zone="$2"; shift 2 ;;
    --type) value "$@"; type="$2"; shift 2 ;;
    --project) value "$@"; project="$2"; shift 2 ;;
    --version) value "$@"; version="$2"; shift 2 ;;
    --spot) spot=true; shift ;;
    --before) value "$@"; before="$2"; shift 2 ;;
    --every) value "$@"; every="$2"; shift 2 ;;
    --attempts) value "$@"; attempts="$2"; shift 2 ;;
    --wait) value "$@"; pause="$2"; shift 2 ;;
    --python) value "$@"; python="$2"; shift 2 ;;
    --delete) delete=true; shift ;;
    --allow-multi-host) multi_host=true; shift ;;
    --dry-run) DRY_RUN=true; shift ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    -*) fail "unknown option '$1'; see --help" ;;
    *) positional+=("$1"); shift ;;
  esac
done
[[ -n "$name" ]] || fail "--name is missing: what to call the slice"
[[ -n "$zone" ]] || fail "--zone is missing, for example us-west4-a"
[[ -n "$type" ]] || fail "--type is missing, for example v5litepod-8"
((${#positional[@]} >= 1)) || fail "CONFIG is missing, for example configs/recipes/tiny.gin"
((${#positional[@]} >= 2)) || fail "RUN_DIR is missing, for example gs://mine/runs/tiny"
((${#positional[@]} == 2)) || fail "unexpected '${positional[2]}'; arguments of aya run come after --"
config="${positional[0]}" run_dir="${positional[1]%/}"
[[ "$run_dir" == gs://?* ]] || local_folder "$run_dir"
[[ "$config" != /* ]] || fail "CONFIG must be a path in the project, not '$config'"
whole_number --every "$every"
whole_number --attempts "$attempts"
whole_number --wait "$pause"

# The number counts chips (v5litepod, v6e) or cores (the others); up to 8 are one host either way.
[[ "$type" =~ ^[a-z0-9]+-([0-9]+)$ ]] || fail "--type must be like v5litepod-8 or v5p-8, not '$type'"
if ((BASH_REMATCH[1] > 8)) && ! "$multi_host"; then
  fail "$type has several hosts, which aya_jax cannot drive yet; take one host (-8) or add --allow-multi-host"
fi
if [[ -z "$version" ]]; then
  case "$type" in
    v5litepod-*) version='v2-alpha-tpuv5-lite' ;;
    v5p-*) version='v2-alpha-tpuv5' ;;
    v6e-*) version='v2-alpha-tpuv6e' ;;
    *) version='tpu-ubuntu2204-base' ;;
  esac
fi

where=("--zone=$zone")
if [[ -n "$project" ]]; then where+=("--project=$project"); fi
tpu=(gcloud compute tpus tpu-vm)

create() {
  local extra=()
  if "$spot"; then extra+=(--spot); fi
  run "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$version" \
    ${extra[@]+"${extra[@]}"}
}

remove() { run "${tpu[@]}" delete "$name" "${where[@]}" --quiet; }

# READY, PREEMPTED, ... or nothing where there is no such slice.
state() { "${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state)' 2>/dev/null || true; }

# on_hosts COMMAND...: on all hosts. The terminal (-tt) makes a lost connection end what runs there.
on_hosts() {
  run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all --ssh-flag=-tt "--command=$*"
}

quoted() {
  local line
  line="$(printf '%q ' "$@")"
  printf '%s' "${line% }"
}

# The files that git tracks, as they are now.
pack() {
  if "$DRY_RUN"; then
    echo "git -C $(quoted "$ROOT") ls-files -z | tar -C $(quoted "$ROOT") --null -T - -czf $(quoted "$1")"
  else
    git -C "$ROOT" ls-files -z --cached | tar -C "$ROOT" --null -T - -czf "$1"
  fi
}

archive="${TMPDIR:-/tmp}/aya_jax.$$.tar.gz"
if "$DRY_RUN"; then archive="${TMPDIR:-/tmp}/aya_jax.tar.gz"; fi
trap 'rm -f "$archive"' EXIT

install() {
  pack "$archive" || return
  run "${tpu[@]}" scp "$archive" "$name:aya_jax.tar.gz" "${where[@]}" --worker=all || return
  on_hosts "mkdir -p aya_jax && tar -C aya_jax -xzf aya_jax.tar.gz && cd aya_jax" \
    "&& python3 -m pip install --quiet --user uv" \
    "&& python3 -m uv venv --quiet --allow-existing --python $(quoted "$python") .venv" \
    "&& python3 -m uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[tpu]'" || return
  if [[ -n "$before" ]]; then on_hosts "cd aya_jax && bash -c $(quoted "$before")" || return; fi
}

remote=(launch/supervise.sh -- .venv/bin/python -m aya_jax run "$config" --run_dir)
if [[ "$run_dir" == gs://* ]]; then
  folder="runs/${run_dir##*/}"
  remote=(launch/bucket_run.sh --every "$every" "$run_dir" "$folder" -- "${remote[@]}" "$folder" "$@")
else
  remote+=("$run_dir" "$@")
fi
launch() { on_hosts "cd aya_jax && JAX_PLATFORMS=tpu $(quoted "${remote[@]}")"; }

if "$DRY_RUN"; then
  show "${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state)'
  create
  install
  launch
  if "$delete"; then remove; fi
  exit 0
fi

command -v gcloud >/dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
for ((attempt = 1; attempt <= attempts; attempt++)); do
  if ((attempt > 1)); then sleep "$pause"; fi
  now="$(state)"
  case "$now" in
    READY) ;;
    "" | PREEMPTED | TERMINATED)
      if [[ -n "$now" ]]; then
        echo "tpu_pod.sh: the slice is $now; it is made anew (attempt $attempt)" >&2
        remove || continue
      fi
      if ! create; then
        echo "tpu_pod.sh: the slice could not be made (attempt $attempt of $attempts)" >&2
        continue
      fi
      ;;
    *)
      echo "tpu_pod.sh: the slice is $now; waiting (attempt $attempt of $attempts)" >&2
      continue
      ;;
  esac
  status=0
  install || status=$?
  if ((status == 0)); then launch || status=$?; fi
  if ((status == 0)); then
    if "$delete"; then remove; fi
    exit 0
  fi
  if ((status == 130)); then exit 130; fi
  # 255 is ssh's own failure. With the slice still there, any other status is the run's.
  if ((status != 255)) && [[ "$(state)" == READY ]]; then
    fail "ended with status $status on a slice that is well; see the lines above"
  fi
done
fail "the run is not finished after $attempts attempts; the same command goes on"
