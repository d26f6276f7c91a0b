"""Hugging Face models end to end: captured, replaced, saved, and loaded by transformers."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import basis_search as bs  # noqa: E402
from basis_search.families import FAMILIES  # noqa: E402
from basis_search.replacement import huggingface  # noqa: E402

IDS = torch.randint(0, 50, (8, 6), generator=torch.Generator().manual_seed(0))


def a_bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def a_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config).eval()


def replaced(model: Any, pattern: str) -> Any:
    """Replaces every matching layer, by all families in turn."""
    layers = bs.capture(model, [{"input_ids": IDS}, {"input_ids": IDS.flip(0)}], pattern)
    model = copy.deepcopy(model)
    for number, layer in enumerate(layers):
        family = list(FAMILIES)[number % len(FAMILIES)]
        parent, _, leaf = layer.name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, bs.fit(layer, family, FAMILIES[family].examples(layer)[0]))
    return model.eval()


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = model(input_ids=IDS)[0]
        return y


@pytest.mark.parametrize("make", [a_bert, a_gpt2])
def test_saved_and_loaded_by_transformers(make: Any, tmp_path: Path) -> None:
    model = replaced(make(), r"re:.*(layer|h)\.\d+\..*")
    huggingface.save_pretrained(model, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    kinds = [m.family for m in again.modules() if isinstance(m, bs.StructuredLinear)]
    assert kinds == [m.family for m in model.modules() if isinstance(m, bs.StructuredLinear)]
    assert set(kinds) == set(list(FAMILIES)[: len(kinds)])
    assert torch.equal(outputs(again), outputs(model))
    assert not torch.equal(outputs(again), outputs(make()))
    again.save_pretrained(tmp_path / "again")  # a loaded model is saved without `attach`
    assert torch.equal(outputs(type(model).from_pretrained(tmp_path / "again")), outputs(model))


def test_a_searched_model_is_loaded_in_another_process(tmp_path: Path) -> None:
    model = a_bert()
    layers = bs.capture(model, [{"input_ids": IDS}], r"re:.*\.(query|key|value|dense)")
    fronts = bs.search_model(layers, ("dense", "lowrank", "int8"), trials=2)
    bs.apply_(model, bs.plan(fronts, {"flops": 0.9, "latency": math.inf}))
    huggingface.save_pretrained(model, tmp_path)
    torch.save(outputs(model), tmp_path / "expected.pt")
    code = (
        "import torch, transformers, basis_search as bs, basis_search.replacement.huggingface\n"
        f"model = transformers.AutoModel.from_pretrained({str(tmp_path)!r}, add_pooling_layer=False)\n"
        "assert sum(isinstance(m, bs.StructuredLinear) for m in model.modules()) == 12\n"
        f"ids, expected = torch.tensor({IDS.tolist()}), torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(model(input_ids=ids)[0], expected)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sharded_and_a_bfloat16_checkpoint(tmp_path: Path) -> None:
    model = replaced(a_bert(), r"re:.*\.(query|dense)")
    huggingface.save_pretrained(model, tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert torch.equal(outputs(type(model).from_pretrained(tmp_path / "sharded")), outputs(model))
    half = model.bfloat16()
    huggingface.save_pretrained(half, tmp_path / "half")
    loaded = type(model).from_pretrained(tmp_path / "half", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(outputs(loaded), outputs(half))


def test_dequantize_gives_dense_layers_or_refuses(tmp_path: Path) -> None:
    model = a_bert()
    layers = bs.capture(model, [{"input_ids": IDS}], r"re:.*\.query")
    for layer in layers:
        parent, _, leaf = layer.name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, bs.fit(layer, "lowrank", bs.lowrank.Spec(rank=3)))
    expected = outputs(model.eval())
    huggingface.attach(model)
    dense = model.dequantize()
    assert not any(isinstance(m, bs.StructuredLinear) for m in dense.modules())
    torch.testing.assert_close(outputs(dense), expected, rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(bs.BadInput, match="no StructuredLinear"):
        huggingface.attach(a_bert())
    huggingface.save_pretrained(replaced(a_bert(), r"re:.*\.query"), tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for change, sentence in (
        ({"schema_version": 2}, "schema version 2"),
        ({"layers": [{}]}, "has no names"),
        ({"layers": [good["quantization_config"]["layers"][0] | {"in_features": 2**60}]}, "is not within"),
        (
            {"layers": [good["quantization_config"]["layers"][0] | {"in_features": 12}]},
            "16 -> 16, but the replacement is 12 -> 16",
        ),
        ({"layers": [good["quantization_config"]["layers"][0] | {"family": "os"}]}, "there is no family 'os'"),
        ({"layers": [good["quantization_config"]["layers"][0] | {"dtype": "os"}]}, "dtype 'os'"),
    ):
        path.write_text(json.dumps(good | {"quantization_config": good["quantization_config"] | change}))
        with pytest.raises(bs.BadInput, match=sentence):
            transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
