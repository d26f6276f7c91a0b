"""Exported layers with hostile content: the loader refuses them in one sentence, or loads a layer that runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peak import measured
from safetensors.torch import save_file
from small_specs import SPECS
from torch import nn

import basis_search as bs
from basis_search.files import is_file_name, sha256

SECONDS, BYTES = 0.1, 100 * 10**6
"""Limits of a refusal: CPU seconds, and bytes beyond what the process has."""
LAYER = "0"


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One valid export per family; loaded once, so that imports and first calls are not measured."""
    found = {}
    layer = bs.capture(a_model(), [torch.randn(64, 12, generator=torch.Generator().manual_seed(5))])[LAYER]
    for family, spec in SPECS.items():
        model = a_model()
        model[0] = bs.fit(layer, family, spec)
        found[family] = bs.save_pretrained(model, tmp_path_factory.mktemp(family))
        bs.load_pretrained(a_model(), found[family])
    return found


@pytest.fixture
def forged(exports: dict[str, Path], tmp_path: Path) -> Iterator[Any]:
    """forged(family) is a copy of the export to tamper with."""
    folders = iter(range(10**6))

    def copy(family: str) -> Path:
        folder = tmp_path / str(next(folders))
        shutil.copytree(exports[family], folder)
        return folder

    yield copy
    shutil.rmtree(tmp_path)


def refused(folder: Path) -> str:
    """The message; checks that the model is unchanged and that the refusal kept its limits."""
    model = a_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    limit = SECONDS + 2 * parsing_seconds(folder)
    for _ in range(3):  # the least of three counts: a busy machine may delay one
        with measured() as spent, pytest.raises(bs.BadInput) as refusal:
            bs.load_pretrained(model, folder)
        if spent.seconds < limit:
            break
    assert spent.seconds < limit
    assert spent.bytes < BYTES
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert isinstance(model[0], nn.Linear)
    sentence = str(refusal.value)
    assert "\n" not in sentence.strip()
    assert len(sentence) < 2000
    return sentence


def parsing_seconds(folder: Path) -> float:
    """CPU seconds in which Python's own parser reads the folder's JSON files, which depends on the machine."""
    start = time.process_time()
    for path in folder.glob("*.json"):
        with contextlib.suppress(ValueError, RecursionError):
            if path.is_file():  # a pipe is not
                json.loads(path.read_bytes())
    return time.process_time() - start


def loads_and_runs_or_is_refused(folder: Path) -> None:
    model = a_model()
    try:
        bs.load_pretrained(model, folder)
    except bs.BadInput:
        assert isinstance(model[0], nn.Linear)
    else:
        with torch.no_grad():
            assert model(torch.zeros(3, 12)).shape == (3, 5)


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / f"{LAYER}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


HUGE = [2**60, -(2**60), -1, 0, 2**31, 2**24, 10**4000, 2**63, 1e300, 1.5, "9" * 100_000, [[]] * 1000, None, True]


@pytest.mark.parametrize("family", SPECS)
@pytest.mark.parametrize("field", ["in_features", "out_features", "batch"])
def test_sizes_beyond_all_limits(forged: Any, family: str, field: str) -> None:
    for value in HUGE:
        if field == "batch" and value == 2**24:
            continue  # nothing of the size of a batch is allocated
        folder = forged(family)
        rewrite(folder, **{field: value})
        refused(folder)


def test_all_sizes_at_once(forged: Any) -> None:
    for family in SPECS:
        folder = forged(family)
        rewrite(folder, in_features=2**24, out_features=2**24, batch=2**24)
        assert "but the replacement is " in refused(folder)


@pytest.mark.parametrize("family", SPECS)
def test_specs_beyond_all_limits(forged: Any, family: str) -> None:
    honest = json.loads((forged(family) / f"{LAYER}.json").read_text())["spec"]
    for key, value in honest.items():
        for other in HUGE:
            if other == value or (isinstance(value, bool) and isinstance(other, bool)):
                continue
            folder = forged(family)
            rewrite(folder, spec=honest | {key: other})
            refused(folder)


@pytest.mark.parametrize(
    "chain",
    [
        "(1152921504606846976,1152921504606846976,1152921504606846976,1152921504606846976)",
        "(1,4,4,-4)*(4,4,3,1)",
        "(1,NaN,4,4)*(4,4,3,1)",
        "(1,4,4,4)*" * 20_000 + "(4,4,3,1)",
        "(" * 200_000,
        "1" * 200_000,
        "(1,1,1," + "9" * 100_000 + ")",
    ],
)
def test_chains_beyond_all_limits(forged: Any, chain: str) -> None:
    folder = forged("kronecker")
    rewrite(folder, spec={"chain": chain})
    refused(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"format": "basis_search.layer", "format": "basis_search.layer"}', "occurs twice"),
        ("{" + ",".join(f'"{i}":0' for i in range(100_000)) + ',"99999":1}', "99999' occurs twice"),
        ('{"in_features": NaN}', "NaN is not allowed"),
        ('{"in_features": -Infinity}', "-Infinity is not allowed"),
        ('{"in_features": 1e999}', "beyond what a double holds"),
        ('{"in_features": ' + "9" * 100_000 + "}", "beyond 64 bits"),
        ("[" * 500_000, "is nested too deeply"),
        ('{"a":' * 150_000, "is nested too deeply"),
        ('"' + "x" * (2**20) + '"', "at most 1048576 are read"),
        ("", "is not JSON"),
        ("null", "not written by basis_search"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "is not JSON"),
    ],
)
def test_json_of_another_format(forged: Any, text: str, sentence: str) -> None:
    for name in (f"{LAYER}.json", "basis_search.json"):
        folder = forged("lowrank")
        (folder / name).write_text(text)
        assert sentence in refused(folder)


@pytest.mark.parametrize("bad", [b"\xff\xfe\x00", b"\x00" * 1000, b"\x80" * 10, b'{"a": "\xff"}'])
def test_bytes_that_are_not_text(forged: Any, bad: bytes) -> None:
    for name in (f"{LAYER}.json", "basis_search.json"):
        folder = forged("lowrank")
        (folder / name).write_bytes(bad)
        assert "is not JSON" in refused(folder)


PATHS = [
    "../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/../../x",
    "x\0",
    "C:\\x",
    "..\\x",
    "a" * 300,
    "0.safetensors/",
    "./0.json",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_cannot_leave_the_directory(forged: Any, path: str) -> None:
    folder = forged("lowrank")
    rewrite(folder, tensors=path)
    assert "plain file names" in refused(folder)
    folder = forged("lowrank")
    index = json.loads((folder / "basis_search.json").read_text())
    (folder / "basis_search.json").write_text(json.dumps(index | {"layers": [path]}))
    assert "plain file names" in refused(folder)


@given(st.text(max_size=300))
def test_a_plain_name_stays_in_its_directory(name: str) -> None:
    if is_file_name(name):
        assert (Path("/a/b") / name).parent == Path("/a/b")
        assert os.path.normpath(f"/a/b/{name}") == f"/a/b/{name}"


def test_links_pipes_and_folders_are_not_read(forged: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    for name, sentence in ((f"{LAYER}.safetensors", "is missing"), (f"{LAYER}.json", "not a regular file")):
        for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)):
            folder = forged("lowrank")
            (folder / name).rename(outside)
            make(folder / name)
            assert sentence in refused(folder)
    folder = forged("lowrank")
    (folder / f"{LAYER}.safetensors").rename(outside)
    (folder / f"{LAYER}.safetensors").symlink_to(outside)
    assert "is missing" in refused(folder)


def test_a_layer_that_is_listed_twice(forged: Any) -> None:
    folder = forged("lowrank")
    index = json.loads((folder / "basis_search.json").read_text())
    (folder / "basis_search.json").write_text(json.dumps(index | {"layers": index["layers"] * 2}))
    assert "is there twice" in refused(folder)
    folder = forged("lowrank")
    rewrite(folder, aliases=[LAYER])
    assert "is there twice" in refused(folder)


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "quint8", "os", "__class__", "float" * 1000])
def test_dtypes_in_which_no_layer_runs(forged: Any, dtype: str) -> None:
    folder = forged("lowrank")
    rewrite(folder, dtype=dtype)
    assert "dtype" in refused(folder)


def safetensors_file(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


TENSORS: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01",
    "header of 2^60 bytes": safetensors_file({}, length=2**60),
    "header of 2^64 - 1 bytes": safetensors_file({}, length=2**64 - 1),
    "header of 50 MB": safetensors_file(b"{" + b" " * 50_000_000 + b"}"),
    "no header": safetensors_file(b"[]"),
    "shape of 2^60": safetensors_file({"a": entry([2**60], 0, 4)}, b"1234"),
    "shape that overflows": safetensors_file({"a": entry([2**32, 2**32], 0, 0)}),
    "shape that overflows to its size": safetensors_file({"a": entry([2**62 + 1], 0, 4)}, b"1234"),
    "negative shape": safetensors_file({"a": entry([-1], 0, 4)}, b"1234"),
    "shape of text": safetensors_file({"a": entry(["1"], 0, 4)}, b"1234"),
    "offsets beyond the end": safetensors_file({"a": entry([1], 0, 2**60)}, b"1234"),
    "offsets backwards": safetensors_file({"a": entry([1], 4, 0)}, b"1234"),
    "overlapping": safetensors_file({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"),
    "hole": safetensors_file({"a": entry([1], 4, 8)}, b"12345678"),
    "unknown dtype": safetensors_file({"a": entry([1], 0, 4, "PICKLE")}, b"1234"),
    "same name twice": safetensors_file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
    ),
    "a pickle": b"\x80\x04\x95" + b"cos\nsystem\n(S'true'\ntR." * 10,
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("what", TENSORS)
def test_hostile_tensors_files(forged: Any, what: str) -> None:
    folder = forged("lowrank")
    path = folder / f"{LAYER}.safetensors"
    path.write_bytes(TENSORS[what])
    rewrite(folder, sha256=sha256(path))
    refused(folder)


def test_tensors_of_other_shapes_dtypes_and_values(forged: Any) -> None:
    from safetensors.torch import load_file

    for family in SPECS:
        honest = load_file(forged(family) / f"{LAYER}.safetensors")
        for name, tensor in honest.items():
            others: dict[str, torch.Tensor | None] = {
                "gone": None,
                "longer": torch.cat([tensor, tensor]) if tensor.ndim else None,
                "flat": tensor.reshape(-1)[:1] if tensor.numel() > 1 else tensor.reshape(1, 1, 1),
                "empty": tensor.reshape(-1)[:0],
                "one more dimension": tensor[None],
            }
            if tensor.is_floating_point():
                others |= {"NaN": torch.full_like(tensor, torch.nan), "infinite": torch.full_like(tensor, torch.inf)}
            for what, other in others.items():
                if what == "longer" and other is None:
                    continue
                folder = forged(family)
                path = folder / f"{LAYER}.safetensors"
                save_file({k: v for k, v in (honest | {name: other}).items() if v is not None}, path)
                rewrite(folder, sha256=sha256(path))
                model = a_model()
                try:
                    bs.load_pretrained(model, folder)
                except bs.BadInput:
                    assert isinstance(model[0], nn.Linear)
                else:  # a valid layer, another one, which runs
                    assert what not in ("NaN", "infinite", "gone"), (family, name, what)
                    with torch.no_grad():
                        assert model(torch.zeros(3, 12)).shape == (3, 5), (family, name, what)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def any_copy(exports: dict[str, Path], tmp_path: Path, data: st.DataObject) -> Path:
    family = data.draw(st.sampled_from(sorted(SPECS)))
    folder = tmp_path / "x"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(exports[family], folder))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_in_any_field(exports: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    folder = any_copy(exports, tmp_path, data)
    document = json.loads((folder / f"{LAYER}.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        spec = document["spec"] if isinstance(document["spec"], dict) else {}
        field = data.draw(st.sampled_from([*document, *(f"spec.{key}" for key in spec)]))
        value = data.draw(json_values)
        if field.startswith("spec.") and isinstance(document["spec"], dict):
            document["spec"][field.removeprefix("spec.")] = value
        else:
            document[field] = value
    (folder / f"{LAYER}.json").write_text(json.dumps(document))
    loads_and_runs_or_is_refused(folder)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_changed_in_any_file(exports: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    """The sha256 is computed again after the change, as an attacker would do."""
    folder = any_copy(exports, tmp_path, data)
    name = data.draw(st.sampled_from([f"{LAYER}.json", f"{LAYER}.safetensors", "basis_search.json"]))
    path = folder / name
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content), 400) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    path.write_bytes(content)
    if name.endswith("safetensors"):
        rewrite(folder, sha256=sha256(path))
    loads_and_runs_or_is_refused(folder)


@pytest.mark.parametrize("family", ["lowrank", "pq"])
def test_files_cut_at_every_byte(forged: Any, family: str) -> None:
    for name in (f"{LAYER}.json", "basis_search.json"):
        folder = forged(family)
        whole = (folder / name).read_bytes()
        for length in range(len(whole) - 2):  # shorter, it lacks its last brace
            (folder / name).write_bytes(whole[:length])
            with pytest.raises(bs.BadInput):
                bs.load_pretrained(a_model(), folder)
    folder = forged(family)
    path = folder / f"{LAYER}.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        rewrite(folder, sha256=sha256(path))
        with pytest.raises(bs.BadInput):
            bs.load_pretrained(a_model(), folder)
