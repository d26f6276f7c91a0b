"""Codebooks for the MLPs of the digits transformer: python examples/digits/codebooks.py --model DIR

With 8 and 16 times fewer operations than the dense layers: test accuracy after fitting on the captured inputs, and
after straight-through fine-tuning. DIR is written by train.py. --refine fits trees to outputs instead of inputs.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

from measure import finetune
from model import DigitsTransformer, accuracy, digits
from safetensors.torch import load_file

import basis_search as bs
from basis_search.families import dense as dense_family
from basis_search.families import pq
from basis_search.families.pq.refine import fit_refined

FEWER = (8, 16)
EPOCHS, LEARNING_RATE = 8, 2e-3


def cheapest(layer: bs.Layer, fewer: int) -> pq.Spec:
    """The most codebooks that cost at most 1 / fewer of the dense layer's operations."""
    limit = dense_family.cost(dense_family.Spec(), layer).flops / fewer
    count = max(c for c in range(1, layer.in_features + 1) if pq.cost(pq.Spec(c), layer).flops <= limit)
    return pq.Spec(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--fewer", type=int, nargs="*", default=FEWER)
    parser.add_argument("--refine", action="store_true", help="refine trees: fitting takes minutes instead of seconds")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    images, labels, test_images, test_labels = digits()
    dense = DigitsTransformer()
    dense.load_state_dict(load_file(arguments.model / "model.safetensors"))
    layers = {layer.name: layer for layer in bs.Layers.load(arguments.model / "layers") if ".fc" in layer.name}
    fit = fit_refined if arguments.refine else pq.fit
    rows = [{"case": "dense", "accuracy": accuracy(dense, test_images, test_labels)}]
    print(rows[0], flush=True)
    for fewer in arguments.fewer:
        model, errors, specs = copy.deepcopy(dense), [], {}
        for name, layer in layers.items():
            specs[name] = cheapest(layer, fewer)
            module = pq.TrainableProduct(specs[name], fit(specs[name], layer), layer.inputs)
            exact = layer.held_out @ layer.weight.T
            y = module(layer.held_out).detach() - (0 if layer.bias is None else layer.bias)
            errors.append(float((y - exact).square().mean() / exact.var(correction=0)))
            _replace(model, name, module)
        before = accuracy(model, test_images, test_labels)
        finetune(model, dense, images, labels, arguments.epochs, LEARNING_RATE)
        for name, layer in layers.items():  # measure the deployed form, on the compiled kernels
            trained = model.get_submodule(name).params()
            _replace(
                model, name, bs.StructuredLinear(layer.in_features, layer.out_features, "pq", specs[name], trained)
            )
        after = accuracy(model, test_images, test_labels)
        rows.append(
            {
                "case": f"MLPs with {fewer} times fewer operations{', refined' * arguments.refine}",
                "codebooks": [s.codebooks for s in specs.values()],
                "worst nmse as fitted": max(errors), "accuracy as fitted": before, "accuracy fine-tuned": after,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def _replace(model: DigitsTransformer, name: str, module: object) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


if __name__ == "__main__":
    main()
