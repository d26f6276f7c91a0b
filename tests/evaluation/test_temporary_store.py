"""Parameters of evaluations in memory: they are removed with the evaluations, and their folder with the process."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import basis_search as bs
from basis_search.evaluation import fitted_store
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.fitted_store import FittedStore
from basis_search.evaluation.temporary_store import TemporaryStore, of_this_process

pytestmark = pytest.mark.fast


@pytest.mark.slow
def test_a_file_lives_as_long_as_its_evaluations(evaluation: Callable[..., bs.Evaluation]) -> None:
    store = TemporaryStore()
    one = dataclasses.replace(evaluation("fc"), code=code_version())
    other, key = dataclasses.replace(one), one.key
    fitted_store.write(store.draft(key), key, {"weight": torch.ones(2, 2)})
    store.store(key, tuple)
    store.offer_stored([one, other, dataclasses.replace(one, layer_hash="of another layer")])
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    del one
    gc.collect()
    found = fitted_store.find(other)
    assert found is not None
    assert torch.equal(found["weight"], torch.ones(2, 2))
    again = dataclasses.replace(other)
    del other
    gc.collect()
    assert fitted_store.find(again) is None
    assert not list(store.folder.iterdir())


def test_another_process_opens_it_as_a_plain_store() -> None:
    store = TemporaryStore()
    opened = pickle.loads(pickle.dumps(store))
    assert type(opened) is FittedStore
    assert (opened.folder, opened.max_bytes) == (store.folder, store.max_bytes)
    assert store.folder.is_dir()


@pytest.mark.slow
def test_the_folder_is_removed_at_the_exit_of_its_process_and_not_of_a_fork() -> None:
    script = """
import os
from basis_search.evaluation.temporary_store import of_this_process
store = of_this_process()
store.draft("a").write_bytes(b"")
child = os.fork()
if not child:
    assert of_this_process().folder != store.folder
    raise SystemExit
os.waitpid(child, 0)
assert store.draft("a").exists()
print(store.folder)
"""
    flags = ["-S"] if sys.flags.no_site else []
    done = subprocess.run([sys.executable, *flags, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    assert not Path(done.stdout.strip()).exists()


def test_records_in_memory_share_one_store() -> None:
    assert bs.Record().fitted is bs.Record().fitted is of_this_process()
