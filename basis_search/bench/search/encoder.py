"""A synthetic encoder of MiniLM's shape: weights of power-law spectra, text-like token streams.

Singular values sigma_i ~ (i + 10)^-1/2 in random orthogonal bases; tokens of Zipf frequencies that follow one another
by topic and by neighbour.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HIDDEN, HEADS, BLOCKS, VOCABULARY, LENGTH = 384, 1536, 12, 6, 4096, 128
TOPICS, FOLLOWERS = 32, 8


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward net, each normalised after its residual, as in BERT."""

    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # [batch, length, width]
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm_attention(x + self.output(mixed))
        y: Tensor = self.norm_mlp(x + self.down(F.gelu(self.up(x))))
        return y


class Encoder(nn.Module):
    """Token ids [batch, length] -> sentence embeddings [batch, width] of length 1."""

    def __init__(
        self,
        width: int = WIDTH,
        hidden: int = HIDDEN,
        heads: int = HEADS,
        blocks: int = BLOCKS,
        vocabulary: int = VOCABULARY,
        length: int = LENGTH,
        seed: int = 0,
    ):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(EncoderBlock(width, hidden, heads) for _ in range(blocks))
        self._shape_spectra(torch.Generator().manual_seed(seed))
        self.eval()

    @torch.no_grad()
    def _shape_spectra(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                rows, columns = parameter.shape
                parameter.copy_(spectral(rows, columns, generator))
            elif name.endswith("weight"):  # gains of the norms: most near 1, a few large
                parameter.copy_(torch.exp(0.3 * torch.randn(parameter.shape, generator=generator)))
                parameter[torch.randperm(len(parameter), generator=generator)[:3]] *= 3
            else:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        self.positions.weight.mul_(0.3)
        for block in self.blocks:  # peaked attention, and residual branches that do not dominate
            for name, gain in (("query", 2.0), ("key", 2.0), ("output", 0.5), ("down", 0.5)):
                block.get_parameter(f"{name}.weight").mul_(gain)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return F.normalize(x.mean(1), dim=-1)


def spectral(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] with sigma_i ~ (i + 10)^-1/2 and entries of standard deviation 0.05."""
    left, _ = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, min(rows, columns), generator=generator))
    weight: Tensor = left * (torch.arange(min(rows, columns)) + 10.0) ** -0.5 @ right.T
    return weight * (0.05 / weight.std())


def sentences(count: int, length: int = LENGTH, vocabulary: int = VOCABULARY, seed: int = 0) -> Tensor:
    """Token ids [count, length]: tokens drawn from the previous token's followers, the topic, or Zipf's law."""
    # The language is the same for every seed; the seed draws the sentences.
    language, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed)
    zipf = 1 / torch.arange(1, vocabulary + 1)
    topics = zipf * torch.rand(TOPICS, vocabulary, generator=language) ** 6  # [topics, vocabulary]
    followers = torch.multinomial(zipf.expand(vocabulary, -1), FOLLOWERS, generator=language)
    topic = topics[torch.randint(TOPICS, (count,), generator=generator)]
    ids = torch.empty(count, length, dtype=torch.long)
    ids[:, 0] = torch.multinomial(topic, 1, generator=generator)[:, 0]
    for position in range(1, length):
        kind = torch.rand(count, generator=generator)
        habit = followers[ids[:, position - 1], torch.randint(FOLLOWERS, (count,), generator=generator)]
        of_topic = torch.multinomial(topic, 1, generator=generator)[:, 0]
        any_token = torch.multinomial(zipf, count, replacement=True, generator=generator)
        ids[:, position] = torch.where(kind < 0.4, habit, torch.where(kind < 0.8, of_topic, any_token))
    return ids
