"""Stands for gcloud, kubectl, xpk, scontrol, squeue and srun: notes how it was called.

All that it knows is in the folder FAKE_HOME. `storage` works on the folders of `buckets`. The states of a
queued resource are the lines of `states`, the last of which stays. Its host is the folder `host`, in
which `ssh` runs commands with `host/bin` on their PATH; for `aya run` the lines of `outcomes` say what
happens: `run` it, or a status of ssh and the state that is left. `srun` runs its command once a task.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["FAKE_HOME"])


def place(path: str) -> Path:
    return HOME / "buckets" / path[5:] if path.startswith("gs://") else Path(path)


def files(top: Path) -> set[str]:
    return {str(file.relative_to(top)) for file in top.rglob("*") if file.is_file()}


def first_line(file: Path, *, keep_last: bool) -> str:
    """Return it and take it away."""
    first, *later = file.read_text().split("\n")
    if later or not keep_last:
        file.write_text("\n".join(later))
    return first


def value(args: list[str], option: str) -> str | None:
    return next((arg[len(option) + 1 :] for arg in args if arg.startswith(f"{option}=")), None)


def storage(verb: str, words: list[str], args: list[str]) -> int:
    source = place(words[0])
    if verb == "ls":
        return 0 if source.exists() else 1
    target = place(words[1])
    if verb == "cp":
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return 0
    exclude = value(args, "--exclude") or "$^"
    kept = {name for name in files(source) if not re.match(exclude, name)}
    if "--delete-unmatched-destination-objects" in args and target.exists():
        for name in files(target) - kept:
            if not re.match(exclude, name):
                (target / name).unlink()
    for name in kept:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return 0


def queued_resources(verb: str, words: list[str], args: list[str]) -> int:
    states, host = HOME / "states", HOME / "host"
    if verb == "describe":
        print(first_line(states, keep_last=True), end="")
    elif verb == "create":
        states.write_text("WAITING_FOR_RESOURCES\nACTIVE")
    elif verb == "delete":
        states.write_text("")
    elif verb == "scp":
        shutil.copyfile(words[0], host / words[1].partition(":")[2])
    elif verb == "ssh":
        command = value(args, "--command") or ""
        if "aya_jax run" in command:
            outcome = first_line(HOME / "outcomes", keep_last=False)
            if outcome != "run":
                status, left = outcome.split()
                states.write_text(left)
                return int(status)
        path = f"{host / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        return subprocess.run(["bash", "-c", command], cwd=host, env=environment).returncode
    return 0


def srun(args: list[str]) -> int:
    """Run a task a node, all at once; the status is the greatest."""
    number = int(value(args, "--ntasks") or 1)
    command = args[next(i for i, arg in enumerate(args) if not arg.startswith("--")) :]
    tasks = []
    for task in range(number):
        known = {
            "SLURM_NTASKS": str(number),
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": "0",
            "SLURM_STEP_NODELIST": "localhost,other",
        }
        tasks.append(subprocess.Popen(command, env={**os.environ, **known}))
    return max(task.wait() for task in tasks)


def main(tool: str, args: list[str]) -> int:
    with (HOME / "calls").open("a") as file:
        file.write(json.dumps([tool, *args]) + "\n")
    words = [arg for arg in args if not arg.startswith("-")]
    if tool == "srun":
        return srun(args)
    if tool == "squeue":
        print((HOME / "states").read_text())
    if tool == "kubectl":
        (HOME / "applied").write_text(sys.stdin.read())
    if words[:1] == ["storage"]:
        return storage(words[1], words[2:], args)
    if words[:3] == ["compute", "tpus", "queued-resources"]:
        return queued_resources(words[3], words[4:], args)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))
