import hashlib
import subprocess
import sys

import grain
import pytest
import tensorflow_datasets as tfds

from aya_jax.data import atlas, sources
from aya_jax.data.atlas.__main__ import main
from aya_jax.data.atlas.tfds_builder import AtlasConfig, prepare
from aya_jax.errors import AyaError

SETTINGS = {
    "languages": ["de", "ja", "ar"],
    "kinds": ["weekday_name", "territory_name", "list_format", "language_name"],
    "entities": 16,
    "per_language": 20,
}
FLAGS = [
    *("--config", "small", "--languages", "de", "ja", "ar", "--entities", "16"),
    *("--kinds", *SETTINGS["kinds"], "--per_language", "20"),
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    place = tmp_path_factory.mktemp("tfds")
    prepare(place, AtlasConfig(name="small", **SETTINGS))
    return place


def text_of(row):
    """The record as Python's strings, written out field by field."""
    out = {k: v.decode("utf-8") for k, v in row.items() if k != "answers"}
    return {**out, "answers": [answer.decode("utf-8") for answer in row["answers"]]}


def by_id(rows):
    return sorted(rows, key=lambda row: row["id"])


@pytest.mark.parametrize("split", ["train", "eval"])
def test_read_records_are_those_of_the_atlas(data_dir, split):
    source = tfds.data_source("aya_atlas/small", split=split, data_dir=data_dir)
    expected = atlas.build(split=split, **SETTINGS)
    assert len(expected) == 60
    assert by_id(text_of(source[i]) for i in range(len(source))) == by_id(expected)


def test_slice_of_a_split_has_every_language(data_dir):
    source = tfds.data_source("aya_atlas/small", split="train[:40%]", data_dir=data_dir)
    assert len(source) == 24
    assert {row["language"] for row in source} == {b"de", b"ja", b"ar"}


def test_grain_reads_by_index(data_dir):
    source = tfds.data_source("aya_atlas/small", split="train", data_dir=data_dir)
    expected = sorted(row["id"] for row in source)
    dataset = grain.MapDataset.source(source).seed(3).shuffle()
    assert sorted(dataset[i]["id"] for i in range(len(dataset))) == expected
    sampler = grain.samplers.IndexSampler(
        num_records=len(source), num_epochs=1, shuffle=True, seed=3
    )
    loader = grain.DataLoader(data_source=source, sampler=sampler, worker_count=0)
    assert sorted(row["id"] for row in loader) == expected


def test_source_of_a_recipe_reads_it(data_dir):
    place = str(data_dir)
    rows = sources.records(source="tfds:aya_atlas/small", split="eval", data_dir=place)
    assert by_id(rows) == by_id(atlas.build(split="eval", **SETTINGS))
    rows = sources.records(
        source="tfds:aya_atlas/small", languages=["ja"], limit_per_language=5, data_dir=place
    )
    assert [row["language"] for row in rows] == ["ja"] * 5


def test_set_that_is_not_there_is_told(data_dir):
    with pytest.raises(AyaError, match="tfds:aya_atlas/large: cannot be read"):
        sources.records(source="tfds:aya_atlas/large", data_dir=str(data_dir))


def run_without(modules, script, arguments, place):
    """Run Python in a process of its own, where importing any of `modules` fails."""
    for module in modules:
        place.joinpath(f"{module}.py").write_text(
            f"raise ImportError('{module} is not to be used')"
        )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=place, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_another_process_builds_the_same_bytes_without_tensorflow(data_dir, tmp_path):
    script = (
        "import sys; from aya_jax.data.atlas.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    run_without(["tensorflow"], script, ["--data_dir", tmp_path, *FLAGS], tmp_path)

    def files(place):
        paths = [p for p in place.joinpath("aya_atlas").rglob("*") if p.is_file()]
        return {
            str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths
        }

    again = files(tmp_path)
    for split in ("train", "eval"):
        shard = f"aya_atlas-{split}.array_record-00000-of-00001"
        assert f"aya_atlas/small/1.0.0/{shard}" in again
    assert again == files(data_dir)


def test_reader_needs_neither_aya_jax_nor_tensorflow(data_dir, tmp_path):
    script = (
        "import sys\n"
        "import tensorflow_datasets as tfds\n"
        "source = tfds.data_source('aya_atlas/small', split='eval', data_dir=sys.argv[1])\n"
        "print(len(source), sorted(source[0]))"
    )
    shown = run_without(["tensorflow", "aya_jax"], script, [data_dir], tmp_path)
    assert shown == f"60 {sorted(atlas.build(split='eval', **SETTINGS)[0])}"


def test_importing_aya_jax_or_its_sources_does_not_import_tfds():
    script = (
        "import sys, aya_jax, aya_jax.cli, aya_jax.data.sources, aya_jax.data.atlas\n"
        "print([name for name in sys.modules if name.startswith('tensorflow')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_mistakes_are_told_on_the_command_line(tmp_path, capsys):
    assert main(["--data_dir", str(tmp_path), "--per_language", "5"]) == 1
    assert "'all' is the whole atlas" in capsys.readouterr().err
    arguments = ["--data_dir", str(tmp_path), "--config", "one", "--kinds", "weekday_nam"]
    assert main(arguments) == 1
    assert "did you mean 'weekday_name'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.array_record*"))
