"""A small transformer that predicts the next byte of English text: an example model, not part of the library."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, BLOCKS, HEADS, CONTEXT, BYTES = 128, 4, 4, 64, 256
HELD_OUT = 10
"""One docstring in so many is not trained on."""


class Block(nn.Module):
    """Pre-norm causal attention and MLP of four times the width, with residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # [n, tokens, WIDTH]
        n, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, tokens, WIDTH)
        x = x + self.proj(attended)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class LanguageModel(nn.Module):
    """Bytes [n, at most CONTEXT] -> logits of the next byte [n, tokens, BYTES]; 16 linear layers in its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, WIDTH)
        self.position = nn.Parameter(torch.randn(CONTEXT, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, BYTES)
        for block in self.blocks:  # the residual stream begins as the embedding
            for linear in (block.proj, block.fc2):
                nn.init.normal_(linear.weight, std=0.02 / (2 * BLOCKS) ** 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def text() -> tuple[Tensor, Tensor]:
    """Bytes to train on and held-out bytes: docstrings of the standard library, scikit-learn and transformers.

    The same for the same versions of Python and of the packages.
    """
    from basis_search.bench.model.sentences import docstrings

    found = list(dict.fromkeys(" ".join(d.split()) for d in docstrings()))
    parts = [d for i, d in enumerate(found) if i % HELD_OUT], found[::HELD_OUT]
    train, held_out = (torch.frombuffer(bytearray("\n".join(p).encode()), dtype=torch.uint8).long() for p in parts)
    return train, held_out


def sequences(data: Tensor, count: int, seed: int) -> Tensor:
    """[count, CONTEXT + 1], from random places."""
    starts = torch.randint(len(data) - CONTEXT, (count, 1), generator=torch.Generator().manual_seed(seed))
    return data[starts + torch.arange(CONTEXT + 1)]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross entropy of the next byte, nats."""
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
