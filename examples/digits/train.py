"""Train the digits transformer and capture its linear layers: python examples/digits/train.py --out DIR [--device cuda]

A search needs only DIR/layers/; it never imports this code.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from model import DigitsTransformer, accuracy, batches, digits
from safetensors.torch import save_file
from tqdm import tqdm

import basis_search as bs
from basis_search.layers.device import usable_device

EPOCHS, BATCH, LEARNING_RATE = 20, 32, 1e-3
CALIBRATION_BATCH = 64


def train(model: DigitsTransformer, images: torch.Tensor, labels: torch.Tensor) -> None:
    """AdamW with a one-cycle learning rate."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in tqdm(range(EPOCHS), desc="train", unit="epoch"):
        for x, y in batches(images, labels, BATCH, generator):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y, label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    out = options.out
    try:
        device = usable_device(options.device)
    except bs.BadInput as refusal:
        raise SystemExit(f"{refusal}") from None
    torch.manual_seed(0)
    images, labels, test_images, test_labels = (part.to(device) for part in digits())
    model = DigitsTransformer().to(device)
    train(model, images, labels)
    print(f"test accuracy {accuracy(model, test_images, test_labels):.4f} on {len(test_images)} images")
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "model.safetensors")
    calibration = list(zip(images.split(CALIBRATION_BATCH), labels.split(CALIBRATION_BATCH), strict=True))
    layers = bs.capture(
        model,
        calibration,
        samples=4096,
        loss=lambda m, batch: F.cross_entropy(m(batch[0]), batch[1], label_smoothing=0.05),
    )
    layers.save(out / "layers")
    print(f"captured {len(layers)} linear layers into {out / 'layers'}")


if __name__ == "__main__":
    main()
