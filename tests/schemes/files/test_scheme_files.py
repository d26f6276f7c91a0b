"""Native scheme files: saved schemes are loaded, inexact ones are not saved, and edited files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scheme_samples import OURS

import basis_search.schemes as schemes
from basis_search.errors import BadInput
from basis_search.schemes import BilinearScheme
from basis_search.schemes.files import load_save

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("suffix", [".json", ".txt", ".npz"])
def test_saved_schemes_are_loaded(tmp_path: Path, name: str, suffix: str) -> None:
    scheme = OURS[name]()
    path = tmp_path / f"scheme{suffix}"
    schemes.save(scheme, path, {"seed": 3})
    found = schemes.load(path)
    assert found == scheme
    assert type(found) is type(scheme)
    assert found.ring == scheme.ring
    assert all((getattr(found, x) == getattr(scheme, x)).all() for x in "UVW")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".json":
        assert load_save.provenance(path) == {"seed": 3}


def test_inexact_schemes_are_not_saved_and_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    schemes.save(schemes.strassen(), path)
    before = path.read_bytes()
    W = np.array(schemes.strassen().W)
    W[0, 0] = 0
    with pytest.raises(BadInput, match=r"not written: .*Brent's equation"):
        schemes.save(BilinearScheme(2, 2, 2, schemes.strassen().U, schemes.strassen().V, W, "Z"), path)
    assert path.read_bytes() == before
    with pytest.raises(BadInput, match=r"\.json, \.txt or \.npz"):
        schemes.save(schemes.strassen(), tmp_path / "a.pkl")
    with pytest.raises(BadInput, match="cannot be written"):
        schemes.save(schemes.strassen(), tmp_path / "nowhere" / "a.json")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadInput, match="No space left"):
        schemes.save(schemes.strassen(), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "schema version 2"),
        ('"rank": 7', '"rank": 6', "says rank 6"),
        ("[1,0,0,1]", "[1,0,0,0]", "Brent's equation"),
        ('"ring": "ZT"', '"ring": "ZZ"', "unknown ring"),
        ('"ring": "ZT"', '"ring": 3', "ring is 3"),
        ('"ring": "ZT"', '"ring": "Z2"', "not in the ring Z2"),
        ('"kind": "matmul"', '"kind": "magic"', "is unknown; matmul"),
        ('"format": [2, 2, 2]', '"format": [2, 2]', "is unknown; matmul"),
        ('"format": [2, 2, 2]', '"format": [2, 2, 99999999]', "1 to 64"),
        ("[1,0,0,1]", "[1,0,0]", "3"),
        ("[1,0,0,1]", '[1,0,0,"x"]', "not a number"),
        ("[1,0,0,1]", "[1,0,0,true]", "not a coefficient"),
        ('"U":', '"X":', "lacks 'U'"),
    ],
)
def test_edited_files_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "s.json"
    schemes.save(schemes.strassen(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=message):
        schemes.load(path)


def test_a_fingerprint_of_another_exact_scheme_is_detected(tmp_path: Path) -> None:
    path, other = tmp_path / "s.json", tmp_path / "w.json"
    schemes.save(schemes.strassen(), path)
    schemes.save(schemes.winograd(), other)
    mixed = json.loads(other.read_text()) | {"fingerprint": json.loads(path.read_text())["fingerprint"]}
    path.write_text(json.dumps(mixed))
    with pytest.raises(BadInput, match="edited by hand"):
        schemes.load(path)
