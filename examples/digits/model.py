"""A small vision transformer on scikit-learn's handwritten digits: an example model, not part of the library."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, BLOCKS, HEADS, PATCH = 128, 4, 4, 2


class Block(nn.Module):
    """Pre-norm attention and MLP of four times the width, with residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # [n, tokens, WIDTH]
        n, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, WIDTH)
        x = x + self.proj(attended)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class DigitsTransformer(nn.Module):
    """[n, 8, 8] grey values in 0 ... 1 -> [n, 10] logits; 18 linear layers, 0.8 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(torch.randn((8 // PATCH) ** 2, WIDTH) * 0.5)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        side = 8 // PATCH
        patches = images.view(-1, side, PATCH, side, PATCH).transpose(2, 3).reshape(-1, side * side, PATCH * PATCH)
        x = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [1257, 8, 8] and labels, test images [540, 8, 8] and labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = (data.images / 16).astype("float32")
    parts = train_test_split(images, data.target, test_size=0.3, random_state=0, stratify=data.target)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return train, train_labels.long(), test, test_labels.long()


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, half of the images shifted by up to one pixel."""
    pixels = torch.arange(1, 9)
    for chosen in torch.randperm(len(images), generator=generator).split(size):
        n = len(chosen)
        move = torch.randint(-1, 2, (n, 2), generator=generator) * (torch.rand(n, 1, generator=generator) < 0.5)
        rows, columns = pixels + move[:, :1], pixels + move[:, 1:]  # [n, 8]
        padded = F.pad(images[chosen], (1, 1, 1, 1))
        yield padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]], labels[chosen]


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [n, 10]."""
    model.eval()
    return torch.cat([model(part) for part in images.split(128)])


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((predict(model, images).argmax(1) == labels).float().mean())
