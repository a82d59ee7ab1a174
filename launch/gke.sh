#!/usr/bin/env bash
# Runs a recipe on a GKE cluster: fills gke.yaml and applies it.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/gke.sh --name NAME --image IMAGE --claim CLAIM --chips N
                     (--tpu TYPE --topology TxT [--slices N] | --gpu TYPE [--hosts N])
                     [options] CONFIG RUN_DIR [-- ARGUMENT_OF_AYA_RUN...]

Apply a JobSet that runs a recipe on the cluster that kubectl talks to, one process a host. When a host
is preempted or lost all start anew, and the run goes on from its last checkpoint; the same command
after `kubectl delete jobset NAME` goes on as well.

  --name NAME        of the JobSet
  --image IMAGE      made from launch/Dockerfile
  --claim CLAIM      PersistentVolumeClaim, mounted at /mnt/aya on every host (ReadWriteMany where there
                     are several); RUN_DIR, models and data live on it
  --chips N          TPU chips or GPUs a host
  --tpu TYPE         gke-tpu-accelerator of the node pool, such as tpu-v5-lite-podslice, tpu-v5p-slice
  --topology TXT     gke-tpu-topology of the node pool, such as 2x4 or 4x4x4; its chips make the hosts
  --slices N         how many slices (node pools), joined by the data-centre network (default 1)
  --gpu TYPE         gke-accelerator of the node pool, such as nvidia-h100-80gb
  --hosts N          how many GPU hosts (default 1)
  --spot             on spot nodes only
  --grace S          seconds to save after a SIGTERM (default 300); spot nodes give less
  --restarts N       restarts after a host was lost (default 100)
  --namespace NAME   (default: kubectl's own)
  --dry-run          print the JobSet and the command, and do nothing
  --help             this text

examples:
  launch/gke.sh --name aya --image europe-docker.pkg.dev/mine/aya/aya_jax --claim aya \
    --tpu tpu-v5-lite-podslice --topology 2x2 --chips 4 configs/recipes/tiny.gin /mnt/aya/runs/tiny
  launch/gke.sh --name aya --image europe-docker.pkg.dev/mine/aya/aya_jax --claim aya \
    --tpu tpu-v5p-slice --topology 4x4x4 --chips 4 --slices 2 configs/recipes/expanse_8b.gin \
    /mnt/aya/runs/8b -- --gin_file configs/meshes/v5p_128.gin --gin_bindings 'device_mesh.data = 2'
TEXT
}

name='' image='' claim='' tpu='' topology='' slices='' gpu='' chips='' hosts='' spot=false grace=300
restarts=100 namespace=''
options 'name image claim tpu topology slices gpu chips hosts grace restarts namespace' 'spot' "$@"
set -- ${rest[@]+"${rest[@]}"}
[[ -n "$name" ]] || fail "--name is missing: what to call the JobSet"
[[ -n "$image" ]] || fail "--image is missing; build it from launch/Dockerfile"
[[ -n "$claim" ]] || fail "--claim is missing: the PersistentVolumeClaim for models, data and runs"
[[ -n "$tpu" || -n "$gpu" ]] || fail "--tpu or --gpu is missing: the accelerator of the node pool"
[[ -z "$tpu" || -z "$gpu" ]] || fail "--tpu and --gpu exclude each other"
[[ -n "$chips" ]] || fail "--chips is missing: how many TPU chips or GPUs a host has"
config='' run_dir=''
config_and_run_dir /mnt/aya/runs/tiny ${positional[@]+"${positional[@]}"}
[[ "$run_dir" == /mnt/aya/?* ]] || fail "RUN_DIR must be under /mnt/aya, where the claim is mounted, not '$run_dir'"
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] \
  || fail "--name must be lower-case letters, digits and hyphens, at most 32, not '$name'"
for each in chips hosts slices grace restarts; do
  if [[ -n "${!each}" ]]; then whole_number "--$each" "${!each}"; fi
done
((chips >= 1)) || fail "--chips must be 1 or more, not '$chips'"
if [[ -n "$tpu" ]]; then
  [[ -n "$topology" ]] || fail "--topology is missing, for example 2x4"
  [[ "$topology" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "--topology must be like 2x4 or 2x2x1, not '$topology'"
  [[ -z "$hosts" ]] || fail "--hosts is for GPUs; those of a TPU slice follow from --topology and --chips"
  total=$((${topology//x/ * }))
  ((total % chips == 0)) || fail "--topology $topology has $total chips, which $chips a host do not divide"
  hosts=$((total / chips)) slices="${slices:-1}"
else
  [[ -z "$slices" && -z "$topology" ]] || fail "--slices and --topology are for TPUs; GPUs take --hosts"
  hosts="${hosts:-1}" slices=1
fi
((hosts >= 1)) || fail "--hosts must be 1 or more, not '$hosts'"
((slices >= 1)) || fail "--slices must be 1 or more, not '$slices'"

filled() {
  python3 - "$ROOT/launch/gke.yaml" "$name" "$image" "$claim" "$tpu" "$topology" "$slices" "$gpu" \
    "$chips" "$hosts" "$spot" "$grace" "$restarts" "$config" "$run_dir" "$@" <<'PYTHON'
import json
import re
import sys

(path, name, image, claim, tpu, topology, slices, gpu, chips, hosts, spot, grace, restarts, config,
 run_dir) = sys.argv[1:16]
several = int(slices) * int(hosts) > 1
annotations, environment = {}, {"JAX_PLATFORMS": "tpu" if tpu else "cuda"}
if tpu:
    device = "google.com/tpu"
    selector = {
        "cloud.google.com/gke-tpu-accelerator": tpu,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    # A job takes a whole node pool: the hosts of a slice belong together.
    exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    annotations[exclusive] = "cloud.google.com/gke-nodepool"
    if several:
        environment["AYA_PROCESSES"] = "auto"
else:
    device, selector = "nvidia.com/gpu", {"cloud.google.com/gke-accelerator": gpu}
    if several:
        # The first pod of the first job, by the name that JobSet gives it.
        environment["AYA_COORDINATOR"] = f"{name}-slice-0-0.{name}:8476"
        environment["AYA_PROCESSES"] = hosts
if spot == "true":
    selector["cloud.google.com/gke-spot"] = "true"
variables = [{"name": key, "value": value} for key, value in environment.items()]
if several and gpu:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    variables.append({"name": "AYA_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}})
command = ["python", "-m", "aya_jax", "run", config, "--run_dir", run_dir, *sys.argv[16:]]
# Kubernetes replaces $(NAME) in commands; a doubled dollar sign stands for itself.
command = [part.replace("$(", "$$(") for part in command]
values = {
    "NAME": name,
    "ANNOTATIONS": annotations,
    "IMAGE": image,
    "CLAIM": claim,
    "SLICES": int(slices),
    "HOSTS": int(hosts),
    "HOST_NETWORK": several,
    "GRACE": int(grace),
    "RESTARTS": int(restarts),
    "SELECTOR": selector,
    "DEVICE": device,
    "CHIPS": int(chips),
    "COMMAND": command,
    "ENVIRONMENT": variables,
}


def plain(value):
    return json.dumps(value, ensure_ascii=False)


text = open(path, encoding="utf-8").read()
sys.stdout.write(re.sub(r"@([A-Z_]+)@", lambda mark: plain(values[mark[1]]), text))
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
