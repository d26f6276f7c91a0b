"""The catalogue: every scheme is exact and named after its contents; other folders; published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scheme_samples import gaussian, rectangular

import basis_search.schemes as schemes
from basis_search.errors import BadInput

pytestmark = pytest.mark.fast


def test_every_scheme_of_the_catalogue_verifies_and_is_what_its_name_says() -> None:
    found = schemes.catalogue()
    for name, scheme in found.items():
        assert scheme.verify()
        assert name.startswith(f"{scheme.format}_r{scheme.rank}_")
        assert found.provenance(name)


def test_a_catalogue_in_another_folder(tmp_path: Path) -> None:
    own = schemes.catalogue(tmp_path)
    assert len(own) == 0
    assert own.best(2, 2, 2) is None
    assert own.add(schemes.strassen(), {"by": "hand"}) == "2x2x2_r7_ZT"
    assert own.add(schemes.winograd().reduce_mod(2), {"by": "hand"}) == "2x2x2_r7_Z2"
    assert own.add(gaussian(), {}, suffix="b") == "2x2x2_r7_Zihalf_b"
    assert own.add(rectangular(), {}) == "2x4x6_r42_ZT"
    assert list(own) == ["2x2x2_r7_Z2", "2x2x2_r7_ZT", "2x2x2_r7_Zihalf_b", "2x4x6_r42_ZT"]
    fresh = schemes.catalogue(tmp_path)
    assert fresh["2x2x2_r7_ZT"] == schemes.strassen()
    assert fresh.provenance("2x2x2_r7_ZT") == {"by": "hand"}
    best = fresh.best(6, 2, 4, "Q")
    assert best is not None
    assert (best.shape, best.rank, best.ring) == ((6, 2, 4), 42, "Q")
    assert best.verify()
    reduced = fresh.best(4, 2, 6, "Z2")
    assert reduced is not None
    assert reduced.ring == "Z2"
    assert fresh.best(2, 2, 2, "Z7") is not None
    assert fresh.best(4, 2, 6, "Z[i]") is not None
    assert fresh.best(3, 3, 3) is None
    with pytest.raises(KeyError):
        fresh["3x3x3_r23_ZT"]
    with pytest.raises(BadInput, match="exact schemes only"):
        fresh.add(schemes.strassen().to_ring("R"), {})
    (tmp_path / "2x2x2_r6_ZT.json").write_bytes((tmp_path / "2x2x2_r7_ZT.json").read_bytes())
    with pytest.raises(BadInput, match="not what its name says"):
        schemes.catalogue(tmp_path)["2x2x2_r6_ZT"]


def test_a_scheme_with_a_suffix_is_found_by_its_ring(tmp_path: Path) -> None:
    own = schemes.catalogue(tmp_path)
    own.add(schemes.strassen(), {}, suffix="a18")
    for ring in (None, "ZT", "Z", "Q", "Z2"):
        best = own.best(2, 2, 2, ring)
        assert best is not None
        assert best.ring == (ring or "ZT")
    assert own.best(2, 2, 2, "Z[i]") is not None


def test_the_catalogue_reads_files_on_first_access(tmp_path: Path) -> None:
    (tmp_path / "2x2x2_r7_ZT.json").write_text("damaged")
    own = schemes.catalogue(tmp_path)
    assert list(own) == ["2x2x2_r7_ZT"]
    with pytest.raises(BadInput, match="not JSON"):
        own["2x2x2_r7_ZT"]


def test_published_files_verify_or_are_refused_for_the_stated_reason(published_data: Path) -> None:
    entries = json.loads((published_data / "MANIFEST.json").read_text())
    assert len(entries) > 50
    read = set()
    for entry in entries:
        path = published_data / entry["path"].split(" + ")[0].replace("[LRP]", "L")
        if "border rank" in entry.get("ring", ""):
            with pytest.raises(BadInput, match="border-rank"):
                schemes.load(path)
            read.add(path)
            continue
        scheme = schemes.load(path)
        assert scheme.verify()
        if "n_m_p" in entry:
            assert list(scheme.shape) == entry["n_m_p"]
            assert scheme.rank == entry["rank"]
            assert entry.get("nnz", scheme.nnz) == scheme.nnz
            small = {"ZT": {"ZT"}, "Z": {"Z"}, "Q": {"Z[1/2]", "Q"}, "C (Z[i]/2)": {"Z[i,1/2]"}}
            assert scheme.ring in small[entry["ring"]]
            assert entry.get("additions_naive", scheme.naive_additions) == scheme.naive_additions
        read.add(path)
    for path in sorted(published_data.rglob("*.*")):
        if path.suffix in (".sms", ".slp") and path not in read:
            assert schemes.load(path).verify()
        elif path.suffix in (".json", ".txt") and path.name != "MANIFEST.json":
            assert path in read
