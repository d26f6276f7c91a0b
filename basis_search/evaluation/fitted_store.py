"""Fitted parameters of evaluations, so that a plan is applied without fitting again: FOLDER/<key>.safetensors.

An evaluator writes the parameters of each successful evaluation to a draft; the worker, which knows the layer's front,
stores or discards it. A file holds the key and a sha256 of its tensors, so that a damaged one is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.code_version import code_version, sources
from basis_search.families.protocol import Params
from basis_search.files import MAX_HEADER_BYTES, check_finite

MAX_BYTES = 2**30
"""Of all files of one store."""
SHARE_AFTER_REMOVAL = 0.9
"""Share of the limit to which a store that exceeds it is reduced, so that not every new file removes others."""
SUFFIX = ".safetensors"


class FittedStore:
    """A folder of fitted parameters that the workers of a run share.

    Args:
        folder: made when the first file is written.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES):
        self.folder, self.max_bytes = folder, max_bytes

    def path(self, key: str) -> Path:
        """The file of the evaluation with that key."""
        return self.folder / (key + SUFFIX)

    def draft(self, key: str) -> Path:
        """Where an evaluator that works for this process writes them."""
        return self.folder / f".{key}.{os.getpid()}{SUFFIX}"

    def discard(self, key: str) -> None:
        """Removes the draft that this process has written, if any."""
        if self.draft(key).is_file():
            self.draft(key).unlink()

    def store(self, key: str, on_fronts: Callable[[], Collection[str]]) -> None:
        """Stores the draft that this process has written, if any, and removes what is above the limit.

        Above the limit the oldest files go first, of those the ones that are not `on_fronts`.
        """
        if not self.draft(key).is_file():
            return
        self.draft(key).replace(self.path(key))
        sizes = {}
        for path in self.folder.glob(f"[!.]*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another worker has removed it
                status = path.stat()
                sizes[path] = status.st_size, status.st_mtime_ns
        total = sum(size for size, _ in sizes.values())
        if total <= self.max_bytes:
            return
        front = on_fronts()
        for path in sorted(sizes, key=lambda path: (path.stem in front, sizes[path][1])):
            if total <= SHARE_AFTER_REMOVAL * self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= sizes[path][0]

    def remove(self, keys: Iterable[str]) -> None:
        """Removes the stored parameters of these evaluations."""
        if self.folder.is_dir():
            for key in {path.stem for path in self.folder.glob(f"[!.]*{SUFFIX}")} & set(keys):
                self.path(key).unlink(missing_ok=True)

    def remove_drafts(self) -> None:
        """Removes the drafts of dead workers; no worker may be evaluating."""
        for path in self.folder.glob(f".*{SUFFIX}"):
            path.unlink(missing_ok=True)

    def load(self, evaluation: Evaluation) -> Params:
        """The stored parameters, on the CPU.

        Raises:
            BadInput: there are none, they were fitted by other code, or the file is damaged.
        """
        path, key = self.path(evaluation.key), evaluation.key
        if sources(evaluation.code) != sources(code_version()):
            raise BadInput(f"basis_search {evaluation.code} fitted them, but this is {code_version()}")
        if not path.is_file() or path.is_symlink():
            raise BadInput(f"{self.folder} holds no fitted parameters of it")
        try:
            with path.open("rb") as file:
                header = int.from_bytes(file.read(8), "little")
            if header > MAX_HEADER_BYTES:
                raise BadInput(f"{path} has a header of {header} bytes, but at most {MAX_HEADER_BYTES} are read")
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        except (OSError, safetensors.SafetensorError, ValueError, RuntimeError) as problem:
            if isinstance(problem, BadInput):
                raise
            raise BadInput(f"{path} is damaged: {problem}") from problem
        if metadata.get("key") != key or metadata.get("sha256") != _digest(params):
            raise BadInput(f"{path} is damaged: its content is not what was stored for it")
        check_finite(params, path)
        return params

    def offer(self, evaluations: Iterable[Evaluation]) -> None:
        """From now on `find` looks for the parameters of these evaluations here."""
        for evaluation in evaluations:
            _offered[evaluation.key] = self

    def offer_stored(self, evaluations: Iterable[Evaluation]) -> None:
        """As `offer`, of those whose parameters are here; the others are fitted without a warning."""
        self.offer([e for e in evaluations if self.path(e.key).is_file()])

    def copy(self, key: str, draft: Path) -> bool:
        """Makes the stored parameters the draft of another store, as a hard link where that is possible.

        Returns:
            Whether they are there now; if that fails, the reason is printed on stderr.
        """
        path = self.path(key)
        if not path.is_file():
            return False
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, draft)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, draft)
        except OSError as problem:
            with contextlib.suppress(OSError):
                draft.unlink()
            print(f"{path}: fitted parameters cannot be copied, an export fits again: {problem}", file=sys.stderr)
            return False
        return True


_offered: dict[str, FittedStore] = {}


def withdraw(key: str, store: FittedStore) -> None:
    """`find` looks for these parameters no longer in the store."""
    if _offered.get(key) is store:
        del _offered[key]


def find(evaluation: Evaluation) -> Params | None:
    """The stored parameters of an evaluation; None where no store offers them.

    Raises:
        BadInput: a store offers them, and cannot load them.
    """
    store = _offered.get(evaluation.key)
    return None if store is None else store.load(evaluation)


def write(path: Path, key: str, params: Params) -> None:
    """Writes a draft; if that fails, the reason is printed on stderr and the evaluation is unaffected."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in params.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, path, metadata={"key": key, "sha256": _digest(plain)})
    except (OSError, safetensors.SafetensorError) as problem:
        with contextlib.suppress(OSError):  # the folder itself may be what fails
            path.unlink()
        print(f"{path.parent}: fitted parameters cannot be stored, an export fits again: {problem}", file=sys.stderr)


def _digest(params: Params) -> str:
    """sha256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(params.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
