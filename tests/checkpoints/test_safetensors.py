"""Safetensors: what the safetensors library reads and writes, and each fault by its name."""

import json
import math
import os
import struct

import ml_dtypes
import numpy as np
import pytest

from aya_jax.checkpoints import safetensors as ours
from aya_jax.checkpoints.safetensors import Safetensors, write_safetensors
from aya_jax.errors import AyaError

BF16 = np.dtype(ml_dtypes.bfloat16)


def awkward_tensors():
    """Every dtype, with values that a conversion on the way would change, and odd shapes."""
    rng = np.random.default_rng(0)
    floats = rng.normal(0, 1, (3, 5)).astype(np.float32)
    floats[0] = [-0.0, np.nan, np.inf, -np.inf, np.float32(1e-45)]
    return {
        "zz.first": rng.integers(0, 1 << 16, (7, 3), np.uint16).view(BF16),
        "a.float32": floats,
        "half": rng.normal(0, 1, (2, 3, 4)).astype(np.float16),
        "scalar": np.array(0.1, np.float32),
        "none": np.zeros((0, 4), np.float32),
        "odd": rng.normal(0, 1, 1).astype(BF16),
    }


def kinds(tensors):
    return {name: (array.dtype, array.shape) for name, array in tensors.items()}


def bits(tensors):
    return {n: (a.dtype.name, a.shape, np.asarray(a).tobytes()) for n, a in tensors.items()}


def write(folder, tensors, order=None, **options):
    with write_safetensors(folder, kinds(tensors), **options) as put:
        for name in order or tensors:
            put(name, tensors[name])


def read(folder):
    with Safetensors(folder) as files:
        return {name: files.read(name) for name in files.tensors}


def test_the_library_reads_what_we_write(tmp_path):
    library = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = awkward_tensors()
    write(tmp_path, tensors, order=sorted(tensors))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    file = tmp_path / "model.safetensors"
    assert bits(numpy.load_file(file)) == bits(tensors)
    with library.safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    # Every tensor is aligned to its items, which readers that map the file rely on.
    with Safetensors(tmp_path) as files:
        assert all(e.start % e.dtype.itemsize == 0 for e in files.tensors.values())


def test_we_read_what_the_library_writes(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = awkward_tensors()
    numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt", "x": "y"})
    assert bits(read(tmp_path)) == bits(tensors)


def test_shards_are_cut_by_size_and_listed(tmp_path):
    tensors = {f"t{i}": np.full((10, i + 1), i, np.float32) for i in range(5)}
    # 40, 80, 120, 160 and 200 bytes.
    write(tmp_path, tensors, order=["t3", "t0", "t4", "t1", "t2"], max_shard_size=150)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    file = "model-{:05d}-of-00004.safetensors".format
    files = {"t0": file(1), "t1": file(1), "t2": file(2), "t3": file(3), "t4": file(4)}
    assert index == {"metadata": {"total_size": 600}, "weight_map": files}
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == sorted({*files.values()})
    assert bits(read(tmp_path)) == bits(tensors)


def test_a_large_tensor_is_written_in_blocks_in_whatever_order_its_axes_are(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "BLOCK", 100)
    array = np.arange(7 * 11 * 3, dtype=np.float32).reshape(3, 11, 7).T
    write(tmp_path, {"x": array})
    assert bits(read(tmp_path)) == bits({"x": array})


def test_a_tensor_that_is_never_given_ends_the_writing(tmp_path):
    array = np.zeros(1, np.float32)
    with (
        pytest.raises(AssertionError, match="b was not written"),
        write_safetensors(tmp_path, kinds({"a": array, "b": array})) as put,
    ):
        put("a", array)


@pytest.mark.parametrize(
    ("shape", "ranges", "runs"),
    [
        ((6, 8), [(2, 5), (0, 8)], 1),
        ((6, 8), [(0, 6), (0, 8)], 1),
        ((6, 8), [(0, 6), (3, 5)], 6),
        ((6, 8), [(2, 4), (3, 3)], 0),
        ((2, 3, 8), [(1, 2), (1, 3), (0, 8)], 1),
        ((2, 3, 8), [(0, 2), (1, 3), (0, 8)], 2),
        ((2, 3, 2, 4), [(0, 2), (0, 3), (1, 2), (1, 4)], 6),
        ((48,), [(5, 9)], 1),
    ],
)
def test_a_part_costs_its_own_bytes_and_no_more(tmp_path, monkeypatch, shape, ranges, runs):
    array = np.arange(48, dtype=np.int16).view(np.float16).reshape(6, 8)
    write(tmp_path, {"before": np.ones(3, np.float16), "x": array})
    calls = []
    preadv = os.preadv

    def counted(descriptor, buffers, offset):
        calls.append(sum(map(len, buffers)))
        return preadv(descriptor, buffers, offset)

    with Safetensors(tmp_path) as files:
        monkeypatch.setattr(os, "preadv", counted)
        part = files.read("x", shape, ranges)
    expected = array.reshape(shape)[tuple(slice(*each) for each in ranges)]
    np.testing.assert_array_equal(part.view(np.int16), expected.view(np.int16))
    assert calls == [expected.nbytes // max(runs, 1)] * runs


def test_a_read_that_comes_in_pieces_is_put_together(tmp_path, monkeypatch):
    tensors = {"x": np.arange(1000, dtype=np.float32)}
    write(tmp_path, tensors)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, b, at: preadv(fd, [b[0][:17]], at))
    assert bits(read(tmp_path)) == bits(tensors)


# Faults.


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_header(path, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.fixture
def one(tmp_path):
    """A file of two tensors, `a` in bytes 0 to 24 and `b` in 24 to 40."""
    write(tmp_path, {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})
    return tmp_path / "model.safetensors"


def refused(path, *words):
    with pytest.raises(AyaError) as error:
        Safetensors(path.parent)
    told = str(error.value)
    assert "\n" not in told
    assert told.startswith(f"{path}: ")
    for word in words:
        assert word in told, told


def test_a_file_cut_off_anywhere_is_told(one):
    data = one.read_bytes()
    for size in range(len(data)):
        one.write_bytes(data[:size])
        refused(one, "is truncated")
    one.write_bytes(data + b"\0")
    refused(one, "is damaged", f"{len(data) + 1} bytes")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_offsets": [0, 20]}, ["tensor 'a' of shape (2, 3) in F32 has 20 bytes"]),
        ({"shape": [2, 4]}, ["tensor 'a' of shape (2, 4) in F32 has 24 bytes"]),
        ({"shape": [2, -3]}, ["tensor 'a'", "no sizes"]),
        ({"shape": [2, 1.5]}, ["tensor 'a'", "no sizes"]),
        ({"shape": "23"}, ["tensor 'a'", "no sizes"]),
        ({"shape": [True, 6]}, ["tensor 'a'", "no sizes"]),
        ({"data_offsets": [24, 0]}, ["tensor 'a'", "data_offsets [24, 0]"]),
        ({"data_offsets": [0]}, ["tensor 'a'", "data_offsets [0]"]),
        ({"data_offsets": [8, 32]}, ["tensor 'a' leaves a gap before it"]),
        ({"data_offsets": [20, 44]}, ["tensor 'a'", "gap"]),
        ({"data_offsets": [24, 48]}, ["gap"]),
        ({"data_offsets": [1 << 60, (1 << 60) + 24]}, ["gap"]),
        ({"dtype": "F8_E4M3"}, ["tensor 'a' has dtype 'F8_E4M3'", "one of BF16, F16, F32"]),
        ({"dtype": "I32"}, ["tensor 'a' has dtype 'I32'", "one of BF16, F16, F32"]),
        ({"dtype": "F64"}, ["tensor 'a' has dtype 'F64'"]),
        ({"dtype": ["F32"]}, ["tensor 'a' has dtype ['F32']"]),
        ({"more": 1}, ["tensor 'a' has not a dtype, a shape and data_offsets"]),
    ],
)
def test_a_header_that_lies_is_told(one, change, words):
    header, body = header_of(one)
    put_header(one, header | {"a": header["a"] | change}, body)
    refused(one, *words)


def test_tensors_that_overlap_are_told(one):
    header, body = header_of(one)
    header["b"]["data_offsets"] = [20, 36]
    put_header(one, header, body)
    refused(one, "tensor 'b' overlaps the one before it")


def test_tensors_beyond_the_end_are_told(one):
    header, body = header_of(one)
    header["c"] = {"dtype": "F32", "shape": [2], "data_offsets": [40, 48]}
    put_header(one, header, body)
    refused(one, "is truncated", f"of {one.stat().st_size + 8} bytes")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {}, "a": {}}',
        b"[" * 100_000,
    ],
)
def test_a_header_that_is_none_is_told(one, header):
    put_header(one, header, b"")
    refused(one, "header is damaged")


def test_a_file_of_something_else_is_told(one):
    one.write_bytes(b"PK\x03\x04" + bytes(range(200)))
    refused(one, "is no safetensors file")


def test_a_file_that_shrinks_while_it_is_read_is_told(one):
    with Safetensors(one.parent) as files:
        os.truncate(one, one.stat().st_size - 16)
        files.read("a")
        with pytest.raises(AyaError, match="is truncated"):
            files.read("b")


@pytest.fixture
def sharded(tmp_path):
    """Three files of a tensor each."""
    write(tmp_path, {name: np.ones(4, np.float32) for name in "abc"}, max_shard_size=16)
    return tmp_path / "model.safetensors.index.json"


def test_a_missing_shard_is_told(sharded):
    shard = sharded.with_name("model-00002-of-00003.safetensors")
    shard.unlink()
    refused(shard, "no such file")


def test_a_shard_in_place_of_another_is_told(sharded):
    shard = sharded.with_name("model-00002-of-00003.safetensors")
    shard.write_bytes(sharded.with_name("model-00001-of-00003.safetensors").read_bytes())
    refused(shard, "has no tensor 'b'", "which model.safetensors.index.json says is in it")


def test_a_tensor_that_the_index_does_not_list_is_told(sharded):
    index = json.loads(sharded.read_text())
    shard = sharded.with_name("model-00003-of-00003.safetensors")
    header, body = header_of(shard)
    header["a"] = header["c"] | {"data_offsets": [16, 32]}
    put_header(shard, header, body * 2)
    refused(shard, "holds tensor 'a', which model.safetensors.index.json does not say")
    index["weight_map"]["a"] = shard.name
    sharded.write_text(json.dumps(index))
    with Safetensors(sharded.parent) as files:
        assert {path.name for path in files.files} == {shard.name, index["weight_map"]["b"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["the index is damaged"]),
        ("[]", ["the index is damaged", "must be a JSON object"]),
        ("{}", ["has no weight_map"]),
        ('{"weight_map": []}', ["has no weight_map"]),
        ('{"weight_map": {}}', ["has no weight_map"]),
        ('{"weight_map": {"a": 3}}', ["tensor 'a' is in 3"]),
        (
            '{"weight_map": {"a": "../b.safetensors"}}',
            ["'../b.safetensors'", "no name of a safetensors"],
        ),
        ('{"weight_map": {"a": "/b"}}', ["no name of a safetensors"]),
        ('{"weight_map": {"a": ".."}}', ["no name of a safetensors"]),
        ('{"weight_map": {"a": "x", "a": "y"}}', ["a name occurs twice"]),
    ],
)
def test_an_index_that_is_none_is_told(sharded, content, words):
    sharded.write_text(content)
    refused(sharded, *words)


def test_a_directory_without_safetensors_is_told(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(AyaError, match=r"neither model\.safetensors nor model\.safetensors\.index"):
        Safetensors(tmp_path)


def test_no_file_stays_open(one):
    before = len(os.listdir("/proc/self/fd"))
    with Safetensors(one.parent) as files:
        assert len(os.listdir("/proc/self/fd")) == before + 1
        assert math.prod(files.tensors["a"].shape) == 6
    data = one.read_bytes()
    one.write_bytes(data[:-1])
    refused(one, "is truncated")
    assert len(os.listdir("/proc/self/fd")) == before
