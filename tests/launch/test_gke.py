"""`gke.sh`: the JobSet that it fills, against the published schema and as what each host is told."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

SCHEMA = Path(__file__).parent / "schemas" / "jobset_v1alpha2.json.gz"
NAMES = ("--name", "aya", "--image", "i", "--claim", "c")
ONE = (*NAMES, "--chips", "8", "--tpu", "tpu-v5-lite-podslice", "--topology", "2x4")
POD = (*NAMES, "--chips", "4", "--tpu", "tpu-v5p-slice", "--topology", "4x4x4", "--slices", "2")
GPUS = (*NAMES, "--chips", "8", "--gpu", "nvidia-h100-80gb", "--hosts", "4")
RUN = ("a.gin", "/mnt/aya/b")


def strict(schema: Any) -> Any:
    """Refuse fields that the schema does not name, as kubectl does (its strict field validation)."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    # An object's metadata is Kubernetes' own, which a CRD does not repeat.
    metadata = {"name": {"type": "string"}, "annotations": {"type": "object"}}
    schema["properties"]["metadata"] = {"type": "object", "properties": metadata}
    return jsonschema.Draft202012Validator(strict(schema))


@pytest.fixture
def jobset(call, cloud, calls):
    """`jobset(*args)`: what a dry run shows."""

    def jobset(*args: str) -> dict[str, Any]:
        done = call("gke.sh", "--dry-run", *args, cloud=cloud)
        assert done.returncode == 0, done.stderr
        assert calls() == []
        assert "@" not in done.stdout
        shown, _ = yaml.safe_load_all(done.stdout)
        return shown

    return jobset


def parts(jobset: dict[str, Any]) -> tuple[Any, Any, Any]:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return replicated, job, job["template"]["spec"]


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


@pytest.mark.parametrize("args", [ONE, (*ONE, "--spot", "--grace", "60"), POD, GPUS])
def test_the_published_schema_takes_it(args, jobset, validator):
    assert [error.message for error in validator.iter_errors(jobset(*args, *RUN))] == []


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("spec", "failurePolicy", "rules", 0, "action"), "Fail"),
        (("spec", "replicatedJobs", 0, "replicas"), "2"),
        (("spec", "replicatedJobs", 0, "template", "spec", "backofLimit"), 0),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers"), {}),
        (("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules"), [{}]),
        (("specs",), {}),
    ],
)
def test_the_published_schema_finds_mistakes(where, value, jobset, validator):
    wrong = place = jobset(*ONE, *RUN)
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    assert list(validator.iter_errors(wrong))


def test_one_host_of_tpus(jobset):
    run = ["a b.gin", '/mnt/aya/it\'s "é"', "--", "--gin_bindings", "x = '$(HOME)'"]
    made = jobset(*ONE, "--spot", *run)
    replicated, job, pod = parts(made)
    assert (made["kind"], made["metadata"]["name"]) == ("JobSet", "aya")
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (1, 1, 1)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 8}}
    head = ["python", "-m", "aya_jax", "run", "a b.gin", "--run_dir", '/mnt/aya/it\'s "é"']
    assert container["command"] == [*head, "--gin_bindings", "x = '$$(HOME)'"]
    assert environment(pod) == {"JAX_PLATFORMS": "tpu"}


def test_slices_have_the_hosts_of_their_topology(jobset):
    made = jobset(*POD, *RUN)
    replicated, job, pod = parts(made)
    # 4 x 4 x 4 chips, 4 a host.
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (2, 16, 16)
    assert job["completionMode"] == "Indexed"
    assert pod["hostNetwork"] is True
    assert environment(pod) == {"JAX_PLATFORMS": "tpu", "AYA_PROCESSES": "auto"}
    # A slice is one node pool.
    assert made["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }


def test_gpu_hosts_find_the_first_by_the_name_that_jobset_gives_it(jobset):
    made = jobset(*GPUS, *RUN)
    replicated, job, pod = parts(made)
    assert (replicated["replicas"], job["parallelism"]) == (1, 4)
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    known = environment(pod)
    # JOBSET-REPLICATED_JOB-JOB-POD.JOBSET, https://jobset.sigs.k8s.io/docs/concepts
    assert re.fullmatch(rf"aya-{replicated['name']}-0-0\.aya:[0-9]+", known.pop("AYA_COORDINATOR"))
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert known == {
        "JAX_PLATFORMS": "cuda",
        "AYA_PROCESSES": "4",
        "AYA_PROCESS": {"fieldRef": {"fieldPath": index}},
    }
    _, _, alone = parts(jobset(*GPUS, "--hosts", "1", *RUN))
    assert environment(alone) == {"JAX_PLATFORMS": "cuda"}


def test_errors_that_the_program_tells_end_it_and_all_else_starts_it_again(jobset):
    made = jobset(*ONE, *RUN)
    _, job, pod = parts(made)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    codes = rule["onExitCodes"]
    assert (codes["operator"], codes["values"]) == ("In", [1, 2])
    assert codes["containerName"] == pod["containers"][0]["name"]
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    policy = made["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert policy["maxRestarts"] == 100
    assert pod["terminationGracePeriodSeconds"] == 300


def test_it_applies_what_it_shows(call, calls, cloud, jobset):
    shown = jobset(*ONE, *RUN)
    done = call("gke.sh", "--namespace", "n", *ONE, *RUN, cloud=cloud)
    assert done.returncode == 0, done.stderr
    assert calls() == [["kubectl", "--namespace", "n", "apply", "-f", "-"]]
    assert yaml.safe_load((cloud / "applied").read_text()) == shown
    dry = call("gke.sh", "--dry-run", "--namespace", "n", *ONE, *RUN)
    assert dry.stdout.splitlines()[-1].endswith("kubectl --namespace n apply -f -")
