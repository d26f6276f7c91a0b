"""Monarch chains for the block layers of the digits transformer: python examples/digits/chains.py --model DIR

Per FLOP budget: test accuracy after fitting on the captured inputs, and after fine-tuning. DIR is written by train.py.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from measure import finetune
from model import DigitsTransformer, accuracy, digits
from safetensors.torch import load_file

import basis_search as bs
from basis_search.families import kronecker

RECIPES = {0.5: (40, 1e-3), 0.25: (100, 3e-3)}
"""Per budget, epochs and learning rate: with a quarter of the operations the fitted model predicts at random, and needs
long training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    folder = parser.parse_args().model
    images, labels, test_images, test_labels = digits()
    dense = DigitsTransformer()
    dense.load_state_dict(load_file(folder / "model.safetensors"))
    layers = {layer.name: layer for layer in bs.Layers.load(folder / "layers")}
    print(f"dense: test accuracy {accuracy(dense, test_images, test_labels):.4f}")
    for budget, (epochs, rate) in RECIPES.items():
        model = copy.deepcopy(dense)
        stored = whole = 0
        for name, layer in layers.items():
            if not name.startswith("blocks."):
                continue
            rows, columns = layer.out_features, layer.in_features
            chains = kronecker.monarch_chains(rows, columns, budget)
            # Least error on the weights by the lower bound, which is exact for two factors.
            best = min(chains, key=lambda c, w=layer.weight: kronecker.factorize(w, c, polish=False).error)
            parent, _, child = name.rpartition(".")
            replacement = bs.fit(layer, "kronecker", kronecker.Spec(chain=str(best)))
            setattr(model.get_submodule(parent), child, replacement)
            stored, whole = stored + best.nnz, whole + rows * columns
        before = accuracy(model, test_images, test_labels)
        finetune(model, dense, images, labels, epochs, rate)
        after = accuracy(model, test_images, test_labels)
        print(f"budget {budget}: FLOPs {stored / whole:.3f}, accuracy {before:.4f}, fine-tuned {after:.4f}", flush=True)


if __name__ == "__main__":
    main()
