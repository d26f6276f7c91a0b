"""The demo's training and capture run on the device that it is given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fake_cuda_devices import FakeCuda

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits"))
import train

import basis_search as bs


def test_the_model_is_trained_and_captured_on_a_gpu(
    fake_cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.rand(64, 8, 8, generator=draw), torch.arange(64) % 10
    monkeypatch.setattr(train, "digits", lambda: (images, labels, images, labels))
    monkeypatch.setattr(train, "EPOCHS", 1)
    monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(tmp_path), "--device", "cuda"])
    captured = []
    monkeypatch.setattr(bs, "capture", lambda *a, f=bs.capture, **k: captured.append(f(*a, **k)) or captured[0])
    train.main()
    assert {str(layer.device) for layer in captured[0]} == {"cuda:0"}
    assert len(bs.Layers.load(tmp_path / "layers")) == 18


def test_a_missing_gpu_is_named_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(tmp_path), "--device", "cuda"])
    with pytest.raises(SystemExit, match="sees no CUDA GPU here"):
        train.main()
