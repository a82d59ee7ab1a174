"""`bucket_run.sh`: a run is copied from a bucket and back, never claiming what is not there."""

import shlex
import sys


def test_it_copies_there_and_back(tmp_path, cloud, call):
    bucket, folder = cloud / "buckets" / "b" / "my run", tmp_path / "run"
    (bucket / "stages" / "old").mkdir(parents=True)
    (bucket / "run.json").write_text("before")
    (bucket / "stages" / "old" / "x").write_text("1")
    body = "cat run.json; rm -r stages/old; mkdir stages/new; echo 2 > stages/new/y; echo after > run.json; exit 5"
    done = call(
        *("bucket_run.sh", "gs://b/my run", str(folder), "--"),
        *("bash", "-c", f"cd {shlex.quote(str(folder))}; {body}"),
        cloud=cloud,
    )
    assert (done.returncode, done.stdout) == (5, "before")
    held = {str(f.relative_to(bucket)): f.read_text() for f in bucket.rglob("*") if f.is_file()}
    assert held == {"run.json": "after\n", "stages/new/y": "2\n"}


def test_it_begins_a_new_run_but_not_in_a_bucket_that_it_cannot_read(tmp_path, cloud, call):
    args = (str(tmp_path / "run"), "--", "bash", "-c", f"echo 1 > {tmp_path}/run/run.json")
    done = call("bucket_run.sh", "gs://b/new", *args, cloud=cloud)
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
    (cloud / "buckets" / "b").mkdir(parents=True)
    done = call("bucket_run.sh", "gs://b/new", *args, cloud=cloud)
    assert done.returncode == 0, done.stderr
    assert (cloud / "buckets" / "b" / "new" / "run.json").read_text() == "1\n"


def test_it_copies_run_json_as_it_was_before_the_stages(tmp_path, cloud, call):
    """A stage that ends while its neighbours are copied must not be claimed in the bucket."""
    folder = tmp_path / "run"
    body = "echo one > run.json; mkdir -p stages/one; echo 1 > stages/one/x; while [[ ! -e go ]]; do sleep 0.05; done"
    gcloud = cloud / "bin" / "gcloud"
    # While the first copy of the stages is made, run.json changes; then the bucket goes away.
    hook = f"""#!/bin/bash
{shlex.quote(sys.executable)} {gcloud}.real "$@" || exit
if [[ "$2" == rsync ]]; then echo two > {folder}/run.json; fi
if [[ "$2" == cp ]]; then cp -r {cloud}/buckets {cloud}/first; touch {folder}/go; fi
"""
    gcloud.rename(f"{gcloud}.real")
    gcloud.write_text(hook)
    gcloud.chmod(0o755)
    (cloud / "buckets" / "b").mkdir(parents=True)
    done = call(
        *("bucket_run.sh", "--every", "1", "gs://b/r", str(folder), "--"),
        *("bash", "-c", f"cd {shlex.quote(str(folder))}; {body}"),
        cloud=cloud,
    )
    assert done.returncode == 0, done.stderr
    first = cloud / "first" / "b" / "r"
    assert (first / "run.json").read_text() == "one\n"
    assert (first / "stages" / "one" / "x").read_text() == "1\n"
