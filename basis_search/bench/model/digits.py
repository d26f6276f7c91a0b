"""The vision transformer of examples/digits on scikit-learn's handwritten digits."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from basis_search.bench.model.example import code, weights
from basis_search.bench.model.task import Task

BATCH = 64


def task(folder: Path) -> Task:
    """Score: accuracy on the 540 test images. Calibrated on the 1,257 training images."""
    digits = code("digits")
    model = digits.DigitsTransformer()
    model.load_state_dict(load_file(weights("digits", folder)))
    images, _, test_images, test_labels = digits.digits()
    return Task(
        "digits", model.eval(), "re:.*", images.split(BATCH), test_images.split(BATCH),
        output=lambda replaced, batch: replaced(batch),
        figures=lambda replaced: {"score": digits.accuracy(replaced, test_images, test_labels)},
        unit="accuracy",
        categorical=True,
    )  # fmt: skip
