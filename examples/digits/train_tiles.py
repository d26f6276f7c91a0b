"""Train the digits transformer with Strassen-Tile layers: python examples/digits/train_tiles.py RECIPE --json FILE

rates: learning rates of weights and bases, evaluated on validation images. scratch: training from scratch per rank,
start and seed, evaluated on the test images and compared with the dense model trained in the same way. finetune: from
train.py's dense model, under FLOP budgets: each layer is fitted, then distilled to the dense layer's outputs, then the
whole model is tuned. layers: the error of each kind of layer under FLOP budgets, without training.
Runs already in FILE are not repeated, so an interrupted call resumes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import finetune_tiles
import torch
from model import DigitsTransformer, accuracy, digits
from tiles import (
    BASES_RATE,
    BLOCK_LAYERS,
    ENDS,
    START_NAMES,
    WEIGHTS_RATE,
    Rates,
    classify,
    flops,
    optimise,
    replaced,
    started,
)

from basis_search.files import read_json, write_json

EPOCHS = 8
VALIDATION = 257
"""Training images reserved for the choice of rates; test images are not used for it."""
WEIGHTS_RATES = (4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3)
BASES_RATES = (0.0, 4e-4, 1.6e-3)
SWEEP_RANK, SWEEP_EPOCHS, SWEEP_SEEDS = 24, 6, (100, 101)
SETTING = ("start", "layers", "rank", "weights", "bases", "epochs", "budget", "kind")
"""Columns that identify a setting of a recipe; the other columns are the seed and the results."""
Row = dict[str, Any]


class Table:
    """Rows in a JSON file, which is written after each row."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = read_json(path)["rows"] if path.exists() else []

    def add(self, key: Row, run: Callable[[], Row]) -> None:
        """Compute and append the row of that key unless it exists."""
        if any(all(row.get(name) == value for name, value in key.items()) for row in self.rows):
            return
        began = time.perf_counter()
        row = {**key, **run(), "seconds": round(time.perf_counter() - began, 1)}
        self.rows.append(row)
        write_json(self.path, {"rows": self.rows})
        print(row, flush=True)

    def summary(self, recipe: str, measures: tuple[str, ...]) -> None:
        """Print mean, standard deviation and minimum over the seeds of each setting."""
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            if row["recipe"] == recipe:
                groups.setdefault(tuple(row[name] for name in SETTING if name in row), []).append(row)
        for setting, rows in groups.items():
            text = " ".join(map(str, setting))
            print(f"{text:40} FLOPs {rows[0]['flops']:.3f}", end="")
            for measure in measures:
                values = [row[measure] for row in rows]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                print(f"  {measure} {statistics.mean(values):.4f} +- {spread:.4f} ({min(values):.4f})", end="")
            print(f"  n={len(rows)}")


def train(start: str, layers: str, rank: int, seed: int, rates: Rates, epochs: int, held: int) -> Row:
    """Train one model from scratch; evaluate it on the last `held` training images, or on the test images if 0."""
    images, labels, test_images, test_labels = digits()
    if held:
        test_images, test_labels = images[-held:], labels[-held:]
        images, labels = images[:-held], labels[:-held]
    torch.manual_seed(seed)
    model: torch.nn.Module = DigitsTransformer()
    if start != "dense":
        names = BLOCK_LAYERS if layers == "blocks" else (*BLOCK_LAYERS, *ENDS)
        # A different seed for each layer.
        model = replaced(model, lambda n, linear: started(linear, start, rank, 1000 * seed + names.index(n)), names)
    optimise(model, classify(model), images, labels, epochs=epochs, rates=rates, seed=seed)
    return {
        "accuracy": accuracy(model, test_images, test_labels),
        "flops": flops(model),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def rates(table: Table, starts: Sequence[str]) -> None:
    """Vary the weights' rate at the default bases' rate, then the bases' rate at the default weights' rate."""
    pairs = [(weights, BASES_RATE) for weights in WEIGHTS_RATES]
    pairs += [(WEIGHTS_RATE, bases) for bases in BASES_RATES if bases != BASES_RATE]
    for seed in SWEEP_SEEDS:
        for start in starts:
            for weights, bases in pairs:
                key: Row = {"recipe": "rates", "start": start, "rank": SWEEP_RANK, "epochs": SWEEP_EPOCHS}
                key |= {"weights": weights, "bases": bases, "seed": seed}
                args = (start, "blocks", SWEEP_RANK, seed, Rates(weights, bases), SWEEP_EPOCHS, VALIDATION)
                table.add(key, lambda args=args: train(*args))  # type: ignore[misc]
    table.summary("rates", ("accuracy",))


def scratch(table: Table, options: argparse.Namespace) -> None:
    for seed in range(options.seeds):
        for rank in (None, *options.ranks):
            for start in ("dense",) if rank is None else options.starts:
                key: Row = {"recipe": "scratch", "start": start, "layers": options.layers, "rank": rank, "seed": seed}
                key |= {"weights": options.weights_rate, "bases": options.bases_rate, "epochs": options.epochs}
                rates = Rates(options.weights_rate, options.bases_rate)
                args = (start, options.layers, rank, seed, rates, options.epochs, 0)
                table.add(key, lambda args=args: train(*args))  # type: ignore[misc]
    table.summary("scratch", ("accuracy",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("rates", "scratch", "finetune", "layers"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 24, 32])
    parser.add_argument("--starts", nargs="+", choices=START_NAMES, default=["random", "catalogue"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--layers", choices=("blocks", "all"), default="blocks")
    parser.add_argument("--weights-rate", type=float, default=WEIGHTS_RATE)
    parser.add_argument("--bases-rate", type=float, default=BASES_RATE, help="0: bases are not trained")
    parser.add_argument("--model", type=Path, help="for finetune and layers: directory written by train.py")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.4])
    options = parser.parse_args()
    if options.recipe in ("finetune", "layers") and options.model is None:
        parser.error(f"{options.recipe} needs --model DIR, a directory written by train.py")
    table = Table(options.json)
    if options.recipe == "rates":
        rates(table, options.starts)
    elif options.recipe == "scratch":
        scratch(table, options)
    elif options.recipe == "layers":
        finetune_tiles.compare(table.add, options.model, options.budgets)
        table.summary("layers", ("error",))
    else:
        finetune_tiles.finetune(table.add, options.model, options.budgets, options.seeds)
        table.summary("finetune", ("fitted", "distilled", "tuned"))


if __name__ == "__main__":
    main()
