#!/usr/bin/env bash
# Runs a recipe on one GPU in a way that makes faults easy to find.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/gpu_debug.sh [options] CONFIG RUN_DIR [-- ARGUMENT_OF_AYA_RUN...]

Run a recipe once on one GPU, slowly: the first NaN ends it with the operation that made it
(JAX_DEBUG_NANS, with which jax donates no buffers either), operations are deterministic, batches and
lengths of a recipe of real size are small, and a profile of the GPU's memory is kept from when it held
the most (read it with pprof).

  --gpu N          which GPU (default 0)
  --profile FILE   the memory profile (default RUN_DIR.memory.prof)
  --python PATH    interpreter (default: .venv/bin/python of this project, else python3)
  --dry-run        print the command and do nothing
  --help           this text

examples:
  launch/gpu_debug.sh configs/recipes/tiny.gin runs/debug
  launch/gpu_debug.sh configs/recipes/expanse_8b.gin runs/debug -- --gin_bindings 'MAX_LENGTH = 1024'
TEXT
}

gpu=0 profile='' python="$(default_python)"
options 'gpu profile python' '' "$@"
set -- ${rest[@]+"${rest[@]}"}
config='' run_dir=''
config_and_run_dir runs/debug ${positional[@]+"${positional[@]}"}
local_folder "$run_dir"
whole_number --gpu "$gpu"
[[ -r "$config" ]] || fail "$config cannot be read"

# The head of a recipe of real size names its sizes; those after -- come later and win.
small=()
for size in 'MAX_LENGTH = 256' 'MAX_NEW_TOKENS = 32' 'BATCH = 4' 'SAMPLE_BATCH = 4'; do
  if grep -q "^${size%% *} *=" "$config"; then small+=(--gin_bindings "$size"); fi
done
environment=(
  JAX_PLATFORMS=cuda
  "CUDA_VISIBLE_DEVICES=$gpu"
  JAX_DEBUG_NANS=True
  "XLA_FLAGS=$DETERMINISTIC${XLA_FLAGS:+ $XLA_FLAGS}"
)
command=(env "${environment[@]}" "$python" "$ROOT/launch/memory_profile.py" "${profile:-$run_dir.memory.prof}"
  run "$config" --run_dir "$run_dir" ${small[@]+"${small[@]}"} "$@")
if "$DRY_RUN"; then
  show "${command[@]}"
  exit 0
fi
env "${environment[@]}" "$python" -c "$FIND_GPU" >/dev/null 2>&1 || no_gpu "$python"
exec "${command[@]}"
