#!/usr/bin/env bash
# Runs a recipe on Cloud TPU slices: asks for them, installs the project on every host, runs it there,
# and asks for new ones when they were preempted.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh run     --name NAME --zone ZONE --type TYPE [options] CONFIG RUN_DIR
                                 [-- ARGUMENT_OF_AYA_RUN...]
       launch/tpu_pod.sh create  --name NAME --zone ZONE --type TYPE [options]
       launch/tpu_pod.sh install --name NAME --zone ZONE [options]
       launch/tpu_pod.sh logs | stop | delete --name NAME --zone ZONE

run      all that is needed: create, install, and the same `aya run` on every host. Slices that were
         preempted are asked for anew, and the run goes on. Losing this terminal does not end the run:
         the same command line follows it, or goes on with it.
create   ask for the slices and wait until they are there
install  copy the project to all hosts and install it; left out where a run is at work
logs     show what all hosts said, and follow it
stop     end the run, which saves itself; the slices stay
delete   give the slices back

One slice of one host keeps RUN_DIR gs://BUCKET/FOLDER in the bucket. Several hosts need a folder that
all of them see: --nfs, and RUN_DIR under /mnt/aya. The Google Cloud project is gcloud's own
(CLOUDSDK_CORE_PROJECT, or gcloud config set project).

  --name NAME        of the queued resource and its slices
  --zone ZONE        such as us-west4-a
  --type TYPE        accelerator type of a slice, such as v5litepod-8, v5p-128, v6e-256
  --slices N         how many slices, joined by the data-centre network (default 1)
  --version VERSION  runtime version of the TPU (default: by TYPE)
  --spot             cheaper, may be preempted
  --nfs SHARE        SERVER:/PATH of a Filestore or other NFS share, mounted at /mnt/aya on every host
  --before COMMAND   run in the project's folder on every host at the end of install; to fetch models,
                     or to mount another file system
  --every S          seconds between copies to a bucket (default 600)
  --attempts N       how often slices are asked for, and the run is started on them, at most (default 20)
  --wait S           seconds between attempts, and between looks at the queue (default 60)
  --python VERSION   Python on the hosts (default 3.12)
  --delete           give the slices back when the run has ended well
  --dry-run          print the commands and do nothing
  --help             this text

examples:
  launch/tpu_pod.sh run --name aya --zone us-west4-a --type v5litepod-4 --spot \
    configs/recipes/tiny.gin gs://mine/runs/tiny
  launch/tpu_pod.sh run --name aya --zone us-east5-a --type v5p-128 --slices 2 --nfs 10.0.0.2:/share \
    configs/recipes/expanse_8b.gin /mnt/aya/runs/8b -- --gin_file configs/meshes/v5p_128.gin \
    --gin_bindings 'device_mesh.data = 2'
TEXT
}

verb='' name='' zone='' type='' slices=1 version='' spot=false nfs='' before='' every=600 attempts=20
wait=60 python=3.12 delete=false
case "${1:-}" in
  run | create | install | logs | stop | delete) verb="$1"; shift ;;
  --help | -h) ;;
  *) fail "the first argument is run, create, install, logs, stop or delete; see --help" ;;
esac
options 'name zone type slices version nfs before every attempts wait python' 'spot delete' "$@"
set -- ${rest[@]+"${rest[@]}"}
[[ -n "$name" ]] || fail "--name is missing: what to call the slices"
[[ -n "$zone" ]] || fail "--zone is missing, for example us-west4-a"
whole_number --every "$every"
whole_number --attempts "$attempts"
whole_number --wait "$wait"
whole_number --slices "$slices"
((slices >= 1)) || fail "--slices must be 1 or more, not '$slices'"
[[ -z "$nfs" || "$nfs" =~ ^[^:/]+:/.+ ]] || fail "--nfs must be SERVER:/PATH, not '$nfs'"

several=false
if [[ "$verb" == run || "$verb" == create ]]; then
  [[ -n "$type" ]] || fail "--type is missing, for example v5litepod-8"
  [[ "$type" != tpu7x* ]] || fail "$type is not to be had as a queued resource; use launch/gke.sh"
  # The number counts chips (v5litepod, v6e) or cores (the others); up to 8 are one host either way.
  [[ "$type" =~ ^[a-z0-9]+-([0-9]+)$ ]] || fail "--type must be like v5litepod-8 or v5p-8, not '$type'"
  if ((BASH_REMATCH[1] > 8 || slices > 1)); then several=true; fi
  if [[ -z "$version" ]]; then
    case "$type" in
      v5litepod-*) version='v2-alpha-tpuv5-lite' ;;
      v5p-*) version='v2-alpha-tpuv5' ;;
      v6e-*) version='v2-alpha-tpuv6e' ;;
      *) version='tpu-ubuntu2204-base' ;;
    esac
  fi
fi

config='' run_dir=''
if [[ "$verb" == run ]]; then
  config_and_run_dir gs://mine/runs/tiny ${positional[@]+"${positional[@]}"}
  [[ "$config" != /* ]] || fail "CONFIG must be a path in the project, not '$config'"
  if [[ -n "$nfs" ]]; then
    [[ "$run_dir" == /mnt/aya/?* ]] || fail "RUN_DIR must be under /mnt/aya, where $nfs is mounted, not '$run_dir'"
  elif "$several"; then
    [[ "$run_dir" == /* ]] \
      || fail "RUN_DIR must be a folder that all hosts see, such as /mnt/aya/runs/8b with --nfs, not '$run_dir'"
  elif [[ "$run_dir" != gs://?* ]]; then
    local_folder "$run_dir"
  fi
elif ((${#positional[@]} || $#)); then
  fail "$verb takes no CONFIG, RUN_DIR or arguments of aya run"
fi

where=("--zone=$zone")
tpu=(gcloud compute tpus queued-resources)

ask() {
  local extra=("--node-id=$name")
  if ((slices > 1)); then extra=("--node-count=$slices" "--node-prefix=$name"); fi
  if "$spot"; then extra+=(--spot); fi
  run "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" \
    "--runtime-version=$version" "${extra[@]}"
}

give_back() { run "${tpu[@]}" delete "$name" "${where[@]}" --force --quiet; }

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ... or nothing where there is no such request.
state() { "${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state.state)' 2>/dev/null || true; }

# Ask until the slices are there. Waiting in the queue is no attempt, however long it takes.
created() {
  local now before='' asked=0
  if "$DRY_RUN"; then
    show "${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
    ask
    return
  fi
  while :; do
    now="$(state)"
    if [[ "$now" == ACTIVE ]]; then return; fi
    case "$now" in
      "" | SUSPENDED | FAILED)
        ((asked < attempts)) || fail "no slices after $attempts attempts; the same command goes on"
        asked=$((asked + 1))
        if [[ -n "$now" ]]; then
          echo "tpu_pod.sh: the slices are $now; new ones are asked for (attempt $asked of $attempts)" >&2
        fi
        if [[ -z "$now" ]] || give_back; then ask || true; fi
        ;;
      *) [[ "$now" == "$before" ]] || echo "tpu_pod.sh: the slices are $now; waiting" >&2 ;;
    esac
    before="$now"
    sleep "$wait"
  done
}

# on_hosts COMMAND: on all hosts of all slices. The terminal (-tt) ends COMMAND with the connection.
on_hosts() {
  run "${tpu[@]}" ssh "$name" "${where[@]}" --node=all --worker=all --ssh-flag=-tt "--command=$1"
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

# A host where the run is at work keeps what it has.
installed() {
  local steps
  steps="mkdir -p aya_jax && tar -C aya_jax -xzf aya_jax.tar.gz && cd aya_jax \
&& python3 -m pip install --quiet --user uv \
&& python3 -m uv venv --quiet --allow-existing --python $(quoted "$python") .venv \
&& python3 -m uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[tpu]'"
  if [[ -n "$nfs" ]]; then
    # A new share belongs to root; only the run's folder in it is made ours.
    steps+=" && { mountpoint -q /mnt/aya || { { command -v mount.nfs >/dev/null \
|| sudo apt-get install -y -qq nfs-common; } && sudo mkdir -p /mnt/aya \
&& sudo mount -t nfs $(quoted "$nfs") /mnt/aya; }; }"
    if [[ -n "$run_dir" ]]; then steps+=" && sudo install -d -o \"\$(id -un)\" $(quoted "$run_dir")"; fi
  fi
  if [[ -n "$before" ]]; then steps+=" && bash -c $(quoted "$before")"; fi
  pack "$archive" || return
  run "${tpu[@]}" scp "$archive" "$name:aya_jax.tar.gz" "${where[@]}" --node=all --worker=all || return
  on_hosts "aya_jax/launch/detached.sh --busy aya_run 2>/dev/null || { $steps; }"
}

started() {
  local environment=(JAX_PLATFORMS=tpu) supervise=(launch/supervise.sh) remote=()
  if "$several"; then
    environment+=(AYA_PROCESSES=auto)
    # Not before all others have noticed that one is lost.
    supervise+=(--wait 60)
  fi
  remote=("${supervise[@]}" -- .venv/bin/python -m aya_jax run "$config" --run_dir)
  if [[ "$run_dir" == gs://* ]]; then
    local folder="runs/${run_dir##*/}"
    remote=(launch/bucket_run.sh --every "$every" "$run_dir" "$folder" -- "${remote[@]}" "$folder" "$@")
  else
    remote+=("$run_dir" "$@")
  fi
  on_hosts "cd aya_jax && launch/detached.sh ../aya_run -- env $(quoted "${environment[@]}" "${remote[@]}")"
}

"$DRY_RUN" || command -v gcloud >/dev/null \
  || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
case "$verb" in
  create) created ;;
  install) installed ;;
  logs) on_hosts "aya_jax/launch/detached.sh --follow aya_run | sed -u \"s/^/\$(hostname): /\"" ;;
  stop) on_hosts 'aya_jax/launch/detached.sh --stop aya_run' ;;
  delete) give_back ;;
  run)
    if "$DRY_RUN"; then
      created
      installed
      started "$@"
      if "$delete"; then give_back; fi
      exit 0
    fi
    for ((attempt = 1; attempt <= attempts; attempt++)); do
      created
      status=0
      installed || status=$?
      if ((status == 0)); then started "$@" || status=$?; fi
      if ((status == 0)); then
        if "$delete"; then give_back; fi
        exit 0
      fi
      if ((status == 130)); then
        echo "tpu_pod.sh: the same command goes on; 'stop' ends a run that is at work, 'delete' gives the slices back" >&2
        exit 130
      fi
      # 255 is ssh's own failure. On slices that are well, an error that the program tells would come again.
      if ! goes_on "$status" && [[ "$(state)" == ACTIVE ]]; then
        fail "ended with status $status on slices that are well; see the lines above"
      fi
      echo "tpu_pod.sh: ended with status $status; looking at the slices in $wait s" >&2
      sleep "$wait"
    done
    fail "the run is not finished after $attempts attempts; the same command goes on"
    ;;
esac
