"""`xpk.sh`: the workload that it submits."""

import shlex
from itertools import pairwise

XPK = ("--name", "aya", "--cluster", "mine", "--type", "v5p-128", "--image", "i", "--slices", "2")


def test_its_command(call, calls, cloud, shown):
    args = (
        *XPK,
        "--storage",
        "s",
        "a b.gin",
        "/mnt/aya/it's",
        "--",
        "--gin_bindings",
        "x = '$(HOME)'",
    )
    (words,) = shown(call("xpk.sh", "--dry-run", *args, cloud=cloud))
    assert calls() == []
    assert words[:3] == ["xpk", "workload", "create"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    command = options.pop("--command")
    assert options == {
        "--workload": "aya",
        "--cluster": "mine",
        "--tpu-type": "v5p-128",
        "--num-slices": "2",
        "--docker-image": "i",
        "--storage": "s",
        "--priority": "medium",
        "--max-restarts": "100",
        # xpk restarts signals by itself; 1 and 2 are left out.
        "--restart-on-exit-codes": "75-77",
        "--termination-grace-period-seconds": "300",
        "--env": "AYA_PROCESSES=auto",
    }
    assert [b for a, b in pairwise(words) if a == "--env"] == [
        "JAX_PLATFORMS=tpu",
        "AYA_PROCESSES=auto",
    ]
    # As the shell that xpk starts reads it; `exec` lets a SIGTERM reach Python.
    head = ["cd", "/app", "&&", "exec", "python", "-m", "aya_jax", "run", "a b.gin"]
    tail = ["--run_dir", "/mnt/aya/it's", "--gin_bindings", "x = '$(HOME)'"]
    assert shlex.split(command) == [*head, *tail]
    # Kubernetes would replace it, and no backslash would help.
    assert "$(" not in command
    assert call("xpk.sh", *args, cloud=cloud).returncode == 0
    assert calls() == [words]
