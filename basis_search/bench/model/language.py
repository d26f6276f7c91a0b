"""The language model of examples/language on held-out docstrings."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from basis_search.bench.model.example import code, weights
from basis_search.bench.model.task import Task
from basis_search.bench.stored_results import StoredResults

BATCH, CALIBRATION, UNSEEN = 16, 512, 256
"""Sequences a batch, and in all."""


def task(folder: Path) -> Task:
    """Score: loss in nats per byte on text of files that training did not see."""
    language = code("language")
    model = language.LanguageModel()
    model.load_state_dict(load_file(weights("language", folder)))

    def drawn() -> list[list[list[int]]]:
        train, held_out = language.text()
        parts = language.sequences(train, CALIBRATION, seed=1), language.sequences(held_out, UNSEEN, seed=2)
        return [part.tolist() for part in parts]

    stored = StoredResults(folder / "language" / "sequences.json")  # reading all docstrings takes a minute
    calibration, unseen = (torch.split(torch.tensor(part), BATCH) for part in stored.of("sequences", drawn))

    @torch.no_grad()
    def loss(replaced: nn.Module) -> dict[str, float]:
        return {"score": sum(float(language.loss(replaced, b)) for b in unseen) / len(unseen)}

    return Task(
        "language", model.eval(), "re:blocks.*", calibration, unseen,
        output=lambda replaced, batch: replaced(batch[:, :-1]),
        figures=loss,
        unit="nats per byte",
        categorical=True,
        higher=False,
    )  # fmt: skip
