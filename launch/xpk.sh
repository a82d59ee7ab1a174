#!/usr/bin/env bash
# Runs a recipe on TPU slices of a GKE cluster that was made by XPK.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/xpk.sh --name NAME --cluster CLUSTER --type TYPE --image IMAGE [options] CONFIG RUN_DIR
                     [-- ARGUMENT_OF_AYA_RUN...]

Submit a recipe with `xpk workload create`, one process a host. When a host is preempted or lost all
start anew, and the run goes on from its last checkpoint; the same command after `xpk workload delete`
goes on as well. Project and zone are gcloud's own. For GPUs take launch/gke.sh.

  --name NAME        of the workload
  --cluster CLUSTER  made by `xpk cluster create`
  --type TYPE        xpk's --tpu-type, such as v5litepod-256, v5p-128, v6e-256, tpu7x-128
  --image IMAGE      made from launch/Dockerfile
  --storage NAME     storage that was attached by `xpk storage attach` (Filestore, Lustre), on which
                     RUN_DIR, models and data live; not needed where it mounts itself
  --slices N         how many slices, joined by the data-centre network (default 1)
  --priority LEVEL   xpk's --priority (default medium)
  --grace S          seconds to save after a SIGTERM (default 300)
  --restarts N       restarts after a host was lost (default 100)
  --dry-run          print the command and do nothing
  --help             this text

example:
  launch/xpk.sh --name aya --cluster mine --type v5p-128 --slices 2 --storage aya \
    --image europe-docker.pkg.dev/mine/aya/aya_jax configs/recipes/expanse_8b.gin /mnt/aya/runs/8b -- \
    --gin_file configs/meshes/v5p_128.gin --gin_bindings 'device_mesh.data = 2'
TEXT
}

name='' cluster='' type='' image='' storage='' slices=1 priority=medium grace=300 restarts=100
options 'name cluster type image storage slices priority grace restarts' '' "$@"
set -- ${rest[@]+"${rest[@]}"}
[[ -n "$name" ]] || fail "--name is missing: what to call the workload"
[[ -n "$cluster" ]] || fail "--cluster is missing: made by xpk cluster create"
[[ -n "$type" ]] || fail "--type is missing, for example v5litepod-256"
[[ -n "$image" ]] || fail "--image is missing; build it from launch/Dockerfile"
config='' run_dir=''
config_and_run_dir /mnt/aya/runs/8b ${positional[@]+"${positional[@]}"}
[[ "$run_dir" == /* ]] || fail "RUN_DIR must be a folder on the storage that all hosts mount, not '$run_dir'"
whole_number --slices "$slices"
whole_number --grace "$grace"
whole_number --restarts "$restarts"
((slices >= 1)) || fail "--slices must be 1 or more, not '$slices'"

# xpk runs it in a shell of its own, which passes a SIGTERM on to what it started: `exec` makes that
# Python. Of our statuses it restarts only those that are named; by itself it does so for signals.
command=(xpk workload create --workload "$name" --cluster "$cluster" --tpu-type "$type"
  --num-slices "$slices" --docker-image "$image" --priority "$priority"
  --env JAX_PLATFORMS=tpu --env AYA_PROCESSES=auto
  --max-restarts "$restarts" --restart-on-exit-codes 75-77
  --termination-grace-period-seconds "$grace"
  --command "cd /app && exec $(quoted python -m aya_jax run "$config" --run_dir "$run_dir" "$@")")
if [[ -n "$storage" ]]; then command+=(--storage "$storage"); fi
if ! "$DRY_RUN"; then
  command -v xpk >/dev/null || fail "xpk is not installed; see https://github.com/AI-Hypercomputer/xpk"
fi
run "${command[@]}"
