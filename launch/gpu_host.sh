#!/usr/bin/env bash
# Runs a recipe on the GPUs of this host.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/gpu_host.sh [options] CONFIG RUN_DIR [-- ARGUMENT_OF_AYA_RUN...]

Run a recipe on 1 to 8 GPUs of this host in one process. The same command goes on with a run that was
interrupted; a run that was killed, stuck or preempted is started again by itself.

Several hosts: the same command on each, with AYA_COORDINATOR=FIRST_HOST:PORT, AYA_PROCESSES=HOSTS and
AYA_PROCESS=0, 1, ... in the environment, and RUN_DIR on a file system that all of them see.

  --gpus LIST      which GPUs, such as 0 or 0,1,2,3 (default: as CUDA_VISIBLE_DEVICES says, else all)
  --memory SHARE   share of each GPU's memory that JAX takes at once (default 0.92)
  --deterministic  the same bits in every run on the same GPUs; slower
  --restarts N     restarts at most (default 10)
  --python PATH    interpreter (default: .venv/bin/python of this project, else python3)
  --dry-run        print the command and do nothing
  --help           this text

example:
  launch/gpu_host.sh --gpus 0 configs/recipes/tiny.gin runs/tiny
  launch/gpu_host.sh configs/recipes/expanse_8b.gin runs/8b -- --gin_file configs/meshes/h100_8.gin
TEXT
}

gpus='' memory=0.92 deterministic=false restarts=10 python="$(default_python)"
options 'gpus memory restarts python' 'deterministic' "$@"
set -- ${rest[@]+"${rest[@]}"}
config='' run_dir=''
config_and_run_dir runs/tiny ${positional[@]+"${positional[@]}"}
local_folder "$run_dir"
[[ -z "$gpus" || "$gpus" =~ ^[0-9]+(,[0-9]+){0,7}$ ]] \
  || fail "--gpus must be 1 to 8 numbers with commas, such as 0,1, not '$gpus'"
[[ "$memory" =~ ^0?\.[0-9]+$ ]] || fail "--memory must be a share below 1, such as 0.92, not '$memory'"
whole_number --restarts "$restarts"

# Communication behind computation; whatever the caller has in XLA_FLAGS comes later and wins.
flags='--xla_gpu_enable_latency_hiding_scheduler=true'
if "$deterministic"; then flags+=" $DETERMINISTIC"; fi
environment=(
  # Without it a missing CUDA plugin would mean a silent run on the CPU.
  JAX_PLATFORMS=cuda
  "XLA_PYTHON_CLIENT_MEM_FRACTION=$memory"
  "XLA_FLAGS=$flags${XLA_FLAGS:+ $XLA_FLAGS}"
)
if [[ -n "$gpus" ]]; then environment+=("CUDA_VISIBLE_DEVICES=$gpus"); fi

supervise=("$ROOT/launch/supervise.sh" --restarts "$restarts")
# Not before all others have noticed that one is lost.
if [[ "${AYA_PROCESSES:-1}" != 1 ]]; then supervise+=(--wait 60); fi
command=(env "${environment[@]}" "${supervise[@]}" --
  "$python" -m aya_jax run "$config" --run_dir "$run_dir" "$@")
if "$DRY_RUN"; then
  show "${command[@]}"
  exit 0
fi
env "${environment[@]}" "$python" -c "$FIND_GPU" >/dev/null 2>&1 || no_gpu "$python"
exec "${command[@]}"
