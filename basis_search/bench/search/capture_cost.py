"""Seconds of capture() over those of the forward passes alone, of a sentence encoder and of a large decoder."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basis_search.bench.search.encoder import VOCABULARY, Encoder
from basis_search.layers.capture import capture

Rows = list[dict[str, Any]]
SENTENCES, SHORTEST, LONGEST, BATCH = 1500, 8, 40, 16
HIDDEN, WIDE, HEADS, BLOCKS = 2048, 8192, 16, 16  # of the decoder


def capture_seconds(device: str, threads: int) -> Rows:
    """36 linears of a random sentence encoder of MiniLM's size on 1,500 padded sentences; aims 1.5 and 3."""
    torch.set_num_threads(threads)
    model = Encoder().to(device)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.split(torch.randint(SHORTEST, LONGEST + 1, (SENTENCES,), generator=generator), BATCH)
    batches = [
        torch.randint(VOCABULARY, (len(part), int(part.max())), generator=generator).to(device) for part in lengths
    ]

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        embedded: Tensor = model(tokens)
        return F.mse_loss(embedded @ embedded.T, torch.eye(len(tokens), device=device))

    cases: list[tuple[str, float, dict[str, Any]]] = [
        ("no loss", 1.5, {}),
        ("loss, sensitivity by gradient", 3.0, {"loss": loss, "sensitivity": "gradient"}),
        ("loss, sensitivity by noise", 3.0, {"loss": loss}),
        ("output metric", 3.0, {"output": True}),
    ]
    capture(model, batches[:2], loss=loss)  # the first calls of torch's kernels
    return [
        _row(f"encoder, {len(batches)} batches of {BATCH}, {name}", model, batches, device, keywords) | {"aim": aim}
        for name, aim, keywords in cases
    ]


def capture_seconds_of_a_large_model(device: str, threads: int) -> Rows:
    """A decoder of 1.07 billion random bfloat16 parameters on 16 sequences of 64 tokens; not with noise."""
    torch.set_num_threads(threads)
    model = nn.Sequential(*(DecoderBlock() for _ in range(BLOCKS)))
    generator = torch.Generator(device).manual_seed(0)
    batches = [torch.randn(4, 64, HIDDEN, dtype=torch.bfloat16, device=device, generator=generator) for _ in range(4)]
    model = model.to(device)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.mse_loss(model(x).float(), x.float())

    cases: list[tuple[str, dict[str, Any]]] = [
        ("112 layers, all rows in the sample, so no moments", {}),
        ("112 layers, samples=256", {"samples": 256}),
        (
            "28 layers of the last 4 blocks, samples=256, loss, gradient",
            {"samples": 256, "layers": r"re:1[2-5]\..*", "loss": loss, "sensitivity": "gradient"},
        ),
        (
            "28 layers of the last 4 blocks, samples=256, output metric",
            {"samples": 256, "layers": r"re:1[2-5]\..*", "output": True},
        ),
    ]
    return [_row(f"decoder, {name}", model, batches, device, keywords) for name, keywords in cases]


class DecoderBlock(nn.Module):
    """Causal attention and a gated feed-forward net, each normalised before, as in Llama; bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"bias": False, "dtype": torch.bfloat16}
        self.query, self.key, self.value, self.output = (nn.Linear(HIDDEN, HIDDEN, **options) for _ in range(4))
        self.gate, self.up = (nn.Linear(HIDDEN, WIDE, **options) for _ in range(2))
        self.down = nn.Linear(WIDE, HIDDEN, **options)

    def forward(self, x: Tensor) -> Tensor:  # [batch, length, HIDDEN]
        y = F.rms_norm(x, x.shape[-1:])
        q, k, v = (f(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.output(mixed)
        y = F.rms_norm(x, x.shape[-1:])
        z: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return z


def _row(case: str, model: nn.Module, batches: Sequence[Any], device: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """On the CPU in CPU seconds, which other processes change less."""

    def passes() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    forward = _seconds(passes, device)
    seconds = _seconds(lambda: capture(model, batches, **keywords), device)
    return {
        "case": case,
        "forward passes, s": forward,
        "capture, s": seconds,
        "ratio": seconds / forward,
        "peak memory of the process, GB": _peak_bytes(device) / 1e9,
    }


def _seconds(call: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_bytes(device: str) -> float:
    """Of this process so far, or of its memory on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return math.ldexp(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 10)
