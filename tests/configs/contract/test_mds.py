"""Our shards against the library that defines the format: a byte of difference, and no other reader opens them."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmms.configs.contract import mds
from lmms.configs.contract.pack import COLUMNS, Pack
from lmms.configs.errors import DatasetError

OTHER_COLUMNS = {
    "count": "int",
    "name": "str",
    "fixed": "ndarray:float64:2,3",
    "grid": "ndarray:uint8",
    "about": "json",
    "raw": "bytes",
}
OTHER_SAMPLE = {
    "count": -(2**60),
    "name": "naïve 名 \u2028",
    "fixed": np.arange(6, dtype=np.float64).reshape(2, 3) / 7,
    "grid": np.arange(2 * 3 * 70000, dtype=np.uint8).reshape(2, 3, 70000),
    "about": {"ü": [1, None, 2.5, "x"]},
    "raw": b"\x00\xff",
}


def write_ours(folder: Path, columns: dict[str, str], shards: list[list[dict[str, Any]]]) -> None:
    files = []
    for number, samples in enumerate(shards):
        encoded = [mds.encode_sample(columns, sample) for sample in samples]
        data = mds.shard_header(columns, [len(sample) for sample in encoded]) + b"".join(encoded)
        name = f"shard.{number:05}.mds"
        (folder / name).write_bytes(data)
        files.append(mds.ShardFile(name, len(data), len(samples), xxhash.xxh3_64_hexdigest(data), ()))
    (folder / mds.INDEX_NAME).write_bytes(mds.index_json(columns, files))


def write_theirs(mosaic: ModuleType, folder: Path, columns: dict[str, str], samples: list[dict[str, Any]]) -> None:
    with mosaic.MDSWriter(
        out=str(folder), columns=columns, hashes=[mds.HASH], size_limit=mds.MAX_SHARD_BYTES
    ) as writer:
        for sample in samples:
            writer.write(sample)


def assert_same_values(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value
            assert type(found[name]) is type(value)


@pytest.fixture
def packs(image_pack: Pack, text_pack: Pack) -> list[dict[str, Any]]:
    return [image_pack.to_columns(), text_pack.to_columns(), image_pack.to_columns()]


@pytest.fixture(params=["packs", "other encodings"])
def columns(request: pytest.FixtureRequest) -> dict[str, str]:
    return dict(COLUMNS) if request.param == "packs" else OTHER_COLUMNS


@pytest.fixture
def samples(columns: dict[str, str], packs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [OTHER_SAMPLE] * 2 if columns == OTHER_COLUMNS else packs


def test_shard_and_index_are_the_bytes_that_mdswriter_writes(
    mosaic: ModuleType, tmp_path: Path, columns: dict[str, str], samples: list[dict[str, Any]]
) -> None:
    (tmp_path / "ours").mkdir()
    write_ours(tmp_path / "ours", columns, [samples])
    write_theirs(mosaic, tmp_path / "theirs", columns, samples)
    assert sorted(p.name for p in (tmp_path / "theirs").iterdir()) == ["index.json", "shard.00000.mds"]
    for theirs in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "ours" / theirs.name).read_bytes() == theirs.read_bytes()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # LocalDataset never closes index.json
def test_local_dataset_reads_every_column_of_ours_across_shards(
    mosaic: ModuleType, tmp_path: Path, packs: list[dict[str, Any]]
) -> None:
    write_ours(tmp_path, dict(COLUMNS), [packs[:2], packs[2:]])
    dataset = mosaic.LocalDataset(str(tmp_path))
    assert len(dataset) == 3
    for i, expected in enumerate(packs):
        assert_same_values(dataset[i], expected)


def test_we_decode_what_mdswriter_wrote(
    mosaic: ModuleType, tmp_path: Path, columns: dict[str, str], samples: list[dict[str, Any]]
) -> None:
    write_theirs(mosaic, tmp_path / "theirs", columns, samples)
    (shard,) = mds.read_index((tmp_path / "theirs" / mds.INDEX_NAME).read_bytes(), "theirs")
    data = (tmp_path / "theirs" / shard.name).read_bytes()
    offsets = mds.shard_offsets(data).tolist()
    assert (shard.bytes, shard.samples, dict(shard.columns)) == (len(data), len(samples), columns)
    assert (shard.xxh3, offsets[-1]) == (xxhash.xxh3_64_hexdigest(data), len(data))
    for start, end, expected in zip(offsets[:-1], offsets[1:], samples, strict=True):
        assert_same_values(mds.decode_sample(columns, data[start:end]), expected)


dtypes = st.sampled_from(["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"])
shapes = st.lists(st.integers(1, 300), min_size=1, max_size=3).filter(lambda shape: np.prod(shape) < 50_000).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(data=st.data(), dtype=dtypes, shape=shapes, fixed=st.booleans())
def test_arrays_round_trip(data: st.DataObject, dtype: str, shape: tuple[int, ...], fixed: bool) -> None:
    array = data.draw(arrays(dtype, shape))
    encoding = f"ndarray:{dtype}" + (":" + ",".join(map(str, shape)) if fixed else "")
    encoded = mds.encode_value(encoding, array)
    decoded = mds.decode_sample({"array": encoding}, mds.encode_sample({"array": encoding}, {"array": array}))["array"]
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)
    assert mds.column_size(encoding) == (len(encoded) if fixed else None)


@settings(deadline=None)
@given(
    raw=st.binary(max_size=40),
    text=st.text(max_size=40),
    number=st.integers(-(2**63), 2**63 - 1),
    about=json_values,
    array=arrays("int32", shapes),
)
def test_samples_of_every_encoding_round_trip(
    raw: bytes, text: str, number: int, about: Any, array: np.ndarray[Any, Any]
) -> None:
    columns = {"z": "bytes", "a": "str", "m": "int", "j": "json", "x": "ndarray:int32"}
    sample = {"z": raw, "a": text, "m": number, "j": about, "x": array}
    assert_same_values(mds.decode_sample(columns, mds.encode_sample(columns, sample)), sample)


@settings(deadline=None)
@given(data=st.data())
def test_damaged_bytes_raise_valueerror_or_decode_to_another_sample(data: st.DataObject) -> None:
    """Never another exception, and never the sample that was written."""
    columns = {"ids": "ndarray:int32", "about": "json", "n": "int", "raw": "bytes", "fixed": "ndarray:int16:2"}
    sample = {
        "ids": np.arange(5, dtype=np.int32),
        "about": [{"a": 1}],
        "n": 7,
        "raw": b"abc",
        "fixed": np.array([1, 2], np.int16),
    }
    good = mds.encode_sample(columns, sample)
    bad = bytearray(good)
    for place, value in data.draw(
        st.dictionaries(st.integers(0, len(good) - 1), st.integers(0, 255), max_size=6)
    ).items():
        bad[place] = value
    bad = bad[: data.draw(st.integers(0, len(good)))]
    if bytes(bad) == good:
        return
    try:
        decoded = mds.decode_sample(columns, bytes(bad))
    except ValueError:
        return
    assert mds.encode_sample(columns, decoded) != good


@pytest.mark.parametrize("cut", [0, 1, 3, 15, -1])
def test_a_truncated_sample_raises(cut: int, image_pack: Pack) -> None:
    encoded = mds.encode_sample(COLUMNS, image_pack.to_columns())
    with pytest.raises(ValueError, match=r"sample has|buffer"):
        mds.decode_sample(COLUMNS, encoded[:cut])


def test_bytes_beyond_the_stated_sizes_raise(image_pack: Pack) -> None:
    encoded = mds.encode_sample(COLUMNS, image_pack.to_columns())
    with pytest.raises(ValueError, match=f"sample has {len(encoded) + 1} bytes, its columns state {len(encoded)}"):
        mds.decode_sample(COLUMNS, encoded + b"\0")


@pytest.mark.parametrize(
    ("encoding", "value", "error"),
    [
        ("ndarray:int32", np.zeros(0, np.int32), ValueError),
        ("ndarray:int32", np.array(3, np.int32), ValueError),
        ("ndarray:int32", np.zeros(2, np.int64), TypeError),
        ("ndarray:int32:3", np.zeros(2, np.int32), ValueError),
        ("ndarray:int32", b"\0\0\0\0", TypeError),
        ("ndarray:int32", [1, 2], TypeError),
        ("bytes", "text", TypeError),
        ("json", b"[]", TypeError),
        ("str", b"text", TypeError),
        ("int", 1.0, TypeError),
        ("pkl", {}, TypeError),
    ],
)
def test_a_value_that_its_encoding_cannot_hold_is_refused(encoding: str, value: Any, error: type[Exception]) -> None:
    """MDSWriter takes any bytes for any encoding, without a word, and readers then fail."""
    with pytest.raises(error, match=r"cannot hold|not JSON serializable"):
        mds.encode_value(encoding, value)


def test_a_shard_that_would_wrap_its_offsets_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds the format's 4294967295"):
        mds.shard_header(COLUMNS, [2**31, 2**31])


def damaged_index(**changes: Any) -> bytes:
    index = json.loads(mds.index_json(COLUMNS, [mds.ShardFile("shard.00000.mds", 10, 1, "0" * 16, ())]))
    index["shards"][0].update(changes)
    return json.dumps(index).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"version": 1, "shards": []}', "MDS version 1, expected 2"),
        (b'{"version": 2}', "is damaged"),
        (damaged_index(raw_data=None), "is damaged"),
        (damaged_index(raw_data={"basename": "a", "bytes": 1, "hashes": []}), "is damaged"),
        (damaged_index(column_names=["one"]), "is damaged"),
        (damaged_index(samples=float("inf")), "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (damaged_index(compression="zstd"), "compression 'zstd'; expected uncompressed"),
        (
            damaged_index(raw_data={"basename": "../a", "bytes": 1, "hashes": {}}),
            r"shard '\.\./a', expected the name of a file in the same folder",
        ),
    ],
)
def test_an_index_that_cannot_be_used_is_refused_by_name(content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=rf"^shards/index\.json.*{message}"):
        mds.read_index(content, "shards/index.json")
