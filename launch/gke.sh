#!/usr/bin/env bash
# Runs a recipe on a GKE cluster: fills gke.yaml and applies it.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/gke.sh --name NAME --image IMAGE --claim CLAIM (--tpu TYPE --topology TxT | --gpu TYPE)
                     --chips N [options] CONFIG RUN_DIR [-- ARGUMENT_OF_AYA_RUN...]

Apply a JobSet that runs a recipe on the cluster that kubectl talks to. A host that is preempted is
replaced, and the run goes on from its last checkpoint; the same command after `kubectl delete jobset
NAME` goes on as well.

  --name NAME        of the JobSet
  --image IMAGE      made from launch/Dockerfile
  --claim CLAIM      PersistentVolumeClaim, mounted at /mnt/aya; RUN_DIR, models and data live on it
  --tpu TYPE         gke-tpu-accelerator of the node pool, such as tpu-v5-lite-podslice, tpu-v5p-slice
  --topology TXT     gke-tpu-topology of the node pool, such as 2x4 or 2x2x1
  --gpu TYPE         gke-accelerator of the node pool, such as nvidia-h100-80gb
  --chips N          TPU chips or GPUs a host
  --hosts N          hosts of the slice (default 1; aya_jax cannot drive more yet)
  --spot             on spot nodes only
  --restarts N       restarts after a host was lost (default 100)
  --namespace NAME   (default: kubectl's own)
  --dry-run          print the JobSet and the command, and do nothing
  --help             this text

example:
  launch/gke.sh --name aya --image europe-docker.pkg.dev/mine/aya/aya_jax --claim aya \
    --tpu tpu-v5-lite-podslice --topology 2x2 --chips 4 configs/recipes/tiny.gin /mnt/aya/runs/tiny
TEXT
}

name='' image='' claim='' tpu='' topology='' gpu='' chips='' hosts=1 spot=false restarts=100 namespace=''
positional=()
while (($#)); do
  case "$1" in
    --name) value "$@"; name="$2"; shift 2 ;;
    --image) value "$@"; image="$2"; shift 2 ;;
    --claim) value "$@"; claim="$2"; shift 2 ;;
    --tpu) value "$@"; tpu="$2"; shift 2 ;;
    --topology) value "$@"; topology="$2"; shift 2 ;;
    --gpu) value "$@"; gpu="$2"; shift 2 ;;
    --chips) value "$@"; chips="$2"; shift 2 ;;
    --hosts) value "$@"; hosts="$2"; shift 2 ;;
    --spot) spot=true; shift ;;
    --restarts) value "$@"; restarts="$2"; shift 2 ;;
    --namespace) value "$@"; namespace="$2"; shift 2 ;;
    --dry-run) DRY_RUN=true; shift ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    -*) fail "unknown option '$1'; see --help" ;;
    *) positional+=("$1"); shift ;;
  esac
done
[[ -n "$name" ]] || fail "--name is missing: what to call the JobSet"
[[ -n "$image" ]] || fail "--image is missing; build it from launch/Dockerfile"
[[ -n "$claim" ]] || fail "--claim is missing: the PersistentVolumeClaim for models, data and runs"
[[ -n "$tpu" || -n "$gpu" ]] || fail "--tpu or --gpu is missing: the accelerator of the node pool"
[[ -z "$tpu" || -z "$gpu" ]] || fail "--tpu and --gpu exclude each other"
[[ -z "$tpu" || -n "$topology" ]] || fail "--topology is missing, for example 2x4"
[[ -n "$chips" ]] || fail "--chips is missing: how many TPU chips or GPUs a host has"
((${#positional[@]} >= 1)) || fail "CONFIG is missing, for example configs/recipes/tiny.gin"
((${#positional[@]} >= 2)) || fail "RUN_DIR is missing, for example /mnt/aya/runs/tiny"
((${#positional[@]} == 2)) || fail "unexpected '${positional[2]}'; arguments of aya run come after --"
config="${positional[0]}" run_dir="${positional[1]}"
[[ "$run_dir" == /mnt/aya/?* ]] || fail "RUN_DIR must be under /mnt/aya, where the claim is mounted, not '$run_dir'"
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] \
  || fail "--name must be lower-case letters, digits and hyphens, at most 32, not '$name'"
whole_number --chips "$chips"
whole_number --hosts "$hosts"
whole_number --restarts "$restarts"
((hosts == 1)) || fail "--hosts $hosts: aya_jax runs in one process yet, on one host"

filled() {
  python3 - "$ROOT/launch/gke.yaml" "$name" "$image" "$claim" "$tpu" "$topology" "$gpu" "$chips" \
    "$hosts" "$spot" "$restarts" "$config" "$run_dir" "$@" <<'PYTHON'
import json
import re
import sys

(path, name, image, claim, tpu, topology, gpu, chips, hosts, spot, restarts, config, run_dir) = (
    sys.argv[1:14]
)
device, selector = "nvidia.com/gpu", {"cloud.google.com/gke-accelerator": gpu}
if tpu:
    device, selector = "google.com/tpu", {
        "cloud.google.com/gke-tpu-accelerator": tpu,
        "cloud.google.com/gke-tpu-topology": topology,
    }
if spot == "true":
    selector["cloud.google.com/gke-spot"] = "true"
command = ["python", "-m", "aya_jax", "run", config, "--run_dir", run_dir, *sys.argv[14:]]
# Kubernetes replaces $(NAME) in commands; a doubled dollar sign stands for itself.
command = [part.replace("$(", "$$(") for part in command]
values = {
    "NAME": name,
    "IMAGE": image,
    "CLAIM": claim,
    "HOSTS": int(hosts),
    "RESTARTS": int(restarts),
    "SELECTOR": selector,
    "DEVICE": device,
    "CHIPS": int(chips),
    "COMMAND": command,
    "ENVIRONMENT": [{"name": "JAX_PLATFORMS", "value": "tpu" if tpu else "cuda"}],
}


def plain(value):
    return json.dumps(value, ensure_ascii=False)


text = open(path, encoding="utf-8").read()
sys.stdout.write(re.sub(r"@([A-Z]+)@", lambda mark: plain(values[mark[1]]), text))
PYTHON
}

apply=(kubectl apply -f -)
if [[ -n "$namespace" ]]; then apply=(kubectl --namespace "$namespace" apply -f -); fi
if "$DRY_RUN"; then
  filled "$@"
  echo "---"
  printf '# piped into: '
  show "${apply[@]}"
  exit 0
fi
command -v kubectl >/dev/null || fail "kubectl is not installed; see https://kubernetes.io/docs/tasks/tools"
filled "$@" | "${apply[@]}"
