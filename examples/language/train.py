"""Train the language model: python examples/language/train.py --out DIR

A few minutes of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import LanguageModel, loss, sequences, text
from safetensors.torch import save_file
from tqdm import tqdm

STEPS, BATCH, LEARNING_RATE = 1200, 16, 3e-3


def train(model: LanguageModel, data: torch.Tensor, steps: int = STEPS) -> None:
    """AdamW with a one-cycle learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    with tqdm(range(steps), desc="train", unit="step") as bar:
        for step in bar:
            value = loss(model, sequences(data, BATCH, seed=step))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{float(value):.3f}")
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.manual_seed(0)
    data, held_out = text()
    model = LanguageModel()
    train(model, data)
    with torch.no_grad():
        value = float(loss(model, sequences(held_out, 256, seed=2)))
    print(f"held-out loss {value:.4f} nats per byte")
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "model.safetensors")


if __name__ == "__main__":
    main()
