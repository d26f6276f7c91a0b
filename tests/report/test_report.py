"""The report's page and pictures: they show what a run folder holds, and no name in it becomes markup."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from basis_search import report
from basis_search.evaluation.candidate import Evaluation
from basis_search.families import FAMILIES
from basis_search.families.protocol import MARKERS
from basis_search.report import interactive, pictures
from basis_search.report.model_panels import model_panel
from basis_search.report.panels import duration, family_style, layer_panel, number
from basis_search.report.run_data import read

pytestmark = pytest.mark.fast

Write = Callable[..., Path]
Made = Callable[..., Evaluation]


def figures_of(page: Path) -> dict[str, Any]:
    text = page.read_text()
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])
    return figures


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._inside = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.mark.slow
def test_page_needs_no_network_and_holds_plotly_once(write_run: Write, tmp_path: Path) -> None:
    page = report.write(write_run())
    assert page == tmp_path / "run" / "report.html"
    elements = Elements(page)
    assert elements.count("link") == 0
    assert not [attrs for tag, attrs in elements.tags if "src" in attrs]
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in elements.tags)
    assert page.read_text().count("* plotly.js v") == 1
    assert not list((tmp_path / "run").glob(".report-*"))


@pytest.mark.slow
def test_page_contains_plans_device_and_settings(write_run: Write) -> None:
    folder = write_run()
    words = Elements(report.write(folder)).words
    run = read(folder)
    for text in ("small vision transformer on digits", "Test processor", "avx2", "1024", "float32", "trials: 6"):
        assert text in words
    for plan in run.plans:
        assert plan.name in words
        for layer, e in plan.choices.items():
            assert layer in words
            for value in dataclasses.asdict(e.candidate.spec).values():
                assert str(value) in words
    assert "97.8 %" in words  # dense


@pytest.mark.slow
def test_hover_names_everything_and_dominated_points_are_there(write_run: Write) -> None:
    folder = write_run(layers=1)
    run = read(folder)
    figures = figures_of(report.write(folder))
    for axis in ("flops", "latency"):
        traces = [t for t in figures["layers"][0][axis]["data"] if t.get("hovertext")]
        texts = [text for t in traces for text in t["hovertext"]]
        done = [e for e in run.evaluations if e.failure is None]
        assert len(texts) == len(done)
        faint = [text for t in traces if t["opacity"] < 1 for text in t["hovertext"]]
        assert len(faint) == len(done) - len(run.fronts[run.layers[0]])
        assert faint
        for text in texts:
            for word in ("kernel ", "error ", "FLOPs ", "of dense", "spread ", " against "):
                assert word in text
    assert len([text for text in texts if text.startswith("lowrank: rank=64<br>")]) == 1


@pytest.mark.slow
def test_weighted_errors_and_damages_are_shown_where_layers_have_a_metric(write_run: Write) -> None:
    folder = write_run(layers=1)
    assert "weighted" not in Elements(report.write(folder)).words

    def felt(value: Any) -> Any:
        """The document with a weighted error and a damage in each evaluation that did not fail."""
        if isinstance(value, list):
            return [felt(v) for v in value]
        if not isinstance(value, dict):
            return value
        found = {k: felt(v) for k, v in value.items()}
        if "layer_hash" in found and found["error"] is not None:
            found |= {"weighted_error": found["error"] / 2, "damage": 0.0625 + found["error"]}
        return found

    log = folder / "evaluations.jsonl"
    log.write_text("".join(json.dumps(felt(json.loads(line))) + "\n" for line in log.read_text().splitlines()))
    for name in ("front.json", "plans.json"):
        (folder / name).write_text(json.dumps(felt(json.loads((folder / name).read_text()))))
    page = report.write(folder)
    words = Elements(page).words
    assert "weighted" in words
    assert "Predicted damage is the squared change of the model's output" in words
    figure = figures_of(page)["layers"][0]["flops"]
    assert "weighted by the output metric" in json.dumps(figure["layout"])
    run = read(folder)
    exact = {round(e.weighted_error, 12) for e in run.evaluations if e.weighted_error}
    shown = {round(y, 12) for t in figure["data"] for y in t["y"]}
    assert len(exact & shown) > 5
    texts = [text for t in figure["data"] for text in t.get("hovertext") or ()]
    assert all("weighted error" in text and "damage" in text for text in texts)


def test_measured_panels_put_the_plans_where_they_were_measured(write_run: Write) -> None:
    run = read(write_run())
    assert run.summary is not None
    for axis in ("flops", "latency"):
        panel = model_panel(run, axis)
        at = {
            (label, name): (x, 1 - y)
            for s in panel.series
            for label, name, x, y in zip([s.label] * len(s.x), s.names, s.x, s.y, strict=True)
        }
        for point in run.summary.points:
            x = point.flops_ratio if axis == "flops" else point.latency_ratio
            here = [v for (label, name), v in at.items() if name == point.name and "not fine" in label]
            assert here == [pytest.approx((x, point.metric))]
            here = [v for (label, name), v in at.items() if name == point.name and "not fine" not in label]
            assert here == [pytest.approx((x, point.metric_tuned))]
        assert at["dense", "dense"] == pytest.approx((1.0, 0.978))


@pytest.mark.slow
def test_a_metric_that_is_no_rate_keeps_its_own_scale(write_run: Write) -> None:
    folder = write_run(layers=1)
    summary = json.loads((folder / "summary.json").read_text())
    summary["metric"] = "perplexity"
    summary["dense"]["metric"] = 12.5
    (folder / "summary.json").write_text(json.dumps(summary))
    panel = model_panel(read(folder), "flops")
    assert not panel.y_log
    assert [s.y for s in panel.series if s.label == "dense"] == [[12.5]]
    report.write(folder)


@pytest.mark.slow
def test_unmeasured_model_shows_predicted_damage_with_a_note(write_run: Write) -> None:
    folder = write_run(measured=False)
    words = Elements(report.write(folder)).words
    assert "the model itself was not measured" in words
    panel = model_panel(read(folder), "latency")
    assert panel.y_label == "predicted damage"
    plans = {p.name: p for p in read(folder).plans}
    shown = {name: (x, y) for s in panel.series for name, x, y in zip(s.names, s.x, s.y, strict=True) if name in plans}
    assert shown.keys() == plans.keys()
    assert all(shown[n] == (plans[n].ratios["latency"], plans[n].totals["damage"]) for n in plans)


@pytest.mark.slow
def test_the_cost_of_keeping_the_latency_is_shown_where_there_is_one(write_run: Write) -> None:
    folder = write_run(measured=False)
    before = Elements(report.write(folder)).words
    assert "without the limit" not in before
    document = json.loads((folder / "plans.json").read_text())
    document["plans"][0] |= {
        "latency_limit": {"limit": 1.0, "damage_without": 0.0123, "latency_without": 1.39},
    }
    (folder / "plans.json").write_text(json.dumps(document))
    words = Elements(report.write(folder)).words
    assert words.count("0.0123 at latency 1.39") == 1
    assert "damage and latency without the limit" in words


def test_layers_are_in_the_order_of_the_fronts_and_numbers_in_units_that_fit(write_run: Write) -> None:
    folder = write_run(layers=3)
    document = json.loads((folder / "front.json").read_text())
    document["layers"] = dict(reversed(document["layers"].items()))
    (folder / "front.json").write_text(json.dumps(document))
    assert read(folder).layers == tuple(document["layers"])
    assert [duration(s) for s in (3e-9, 0.0021, 119, 3910, 86400)] == ["3 ns", "2.1 ms", "119 s", "65.2 min", "24 h"]
    assert [number(n) for n in (0.000403, 12.345, 4720, 5e7)] == ["0.000403", "12.3", "4,720", "5e+07"]


HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>$\\frac{1}{0}$"


@pytest.mark.slow
def test_names_from_files_cannot_become_markup(write_run: Write, evaluation: Made) -> None:
    folder = write_run(layers=2)
    harmless = Elements(report.write(folder))
    for name in ("evaluations.jsonl", "front.json", "plans.json", "summary.json"):
        text = (folder / name).read_text()
        for old in ("blocks.0.attention.qkv", "flops-0.50", "small vision transformer on digits", "test accuracy"):
            text = text.replace(json.dumps(old), json.dumps(HOSTILE))
        (folder / name).write_text(text)
    with (folder / "evaluations.jsonl").open("a") as file:
        failed = evaluation(HOSTILE, failure=HOSTILE, kernel=HOSTILE, error=math.inf, latency_ratio=math.inf)
        file.write(json.dumps(failed.to_json()) + "\n")
    (folder / "config.yaml").write_text(HOSTILE)
    page = report.write(folder)
    elements = Elements(page)
    assert elements.count("script") == harmless.count("script") == 4
    assert elements.count("img") == 0
    assert not [attrs for _, attrs in elements.tags if "onerror" in attrs]
    assert HOSTILE in elements.words
    traces = [t for f in figures_of(page)["layers"] for panel in f.values() for t in panel["data"]]
    assert not [text for t in traces for text in t.get("hovertext", ()) if "<img" in text or "<b>" in text]


@pytest.mark.slow
def test_pictures_show_each_family_in_its_colour(write_run: Write) -> None:
    import numpy as np
    from matplotlib.image import imread

    folder = write_run(layers=1, seed=42)  # every family has a candidate on the front, whose marker is filled
    report.write(folder)
    for name in ("front_flops.png", "front_latency.png", "layers.png"):
        pixels = (imread(folder / name)[..., :3] * 255).round().astype(int)
        shown = set(np.unique(pixels @ [65536, 256, 1]).tolist())
        assert 0xFFFFFF in shown
        families = list(FAMILIES) if name == "layers.png" else ["dense"]
        for family in families:
            assert int(family_style(family).light.removeprefix("#"), 16) in shown


def test_every_marker_and_colour_of_a_family_can_be_drawn() -> None:
    script = (Path(str(report.__file__)).parent / "page.js").read_text()
    for marker in MARKERS:
        assert marker in pictures.MARKERS
        symbol = interactive.SYMBOLS.get(marker, marker)
        assert re.search(rf'^  "?{symbol}"?: "M', script, re.MULTILINE), f"the legend has no shape for {symbol}"
    assert [interactive.DARK[f.STYLE.light] for f in FAMILIES.values()] == [f.STYLE.dark for f in FAMILIES.values()]
    assert family_style("no longer installed").marker == "hexagon"


def test_exact_and_useless_candidates_have_a_place_on_the_log_axis(write_run: Write, evaluation: Made) -> None:
    folder = write_run(layers=1)
    with (folder / "evaluations.jsonl").open("a") as file:
        for error in (1e9, 1e-14, 1e-33):
            e = evaluation("blocks.0.attention.qkv", error=error, latency_ratio=0.01)
            file.write(json.dumps(e.to_json()) + "\n")
    panel = layer_panel(read(folder), "blocks.0.attention.qkv", "latency")
    assert all(y > 0 for s in panel.series for y in s.y)
    assert panel.y_range is not None
    assert panel.y_range[1] < 10
    assert panel.y_range[0] > 1e-6  # rounding of exact candidates does not stretch the axis
    assert panel.y_range[0] < min(y for s in panel.series for y in s.y)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine to look at the page with")
@pytest.mark.parametrize("measured", [True, False])
def test_a_browser_draws_every_plot(write_run: Write, tmp_path: Path, measured: bool) -> None:
    page = report.write(write_run(measured=measured))
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr, shown.stderr
    for place in ("model.flops", "model.latency", "layer.flops", "layer.latency", "timeline"):
        after = shown.stdout.split(f'data-figure="{place}"', 1)[1].split("data-figure=", 1)[0]
        assert 'class="main-svg"' in after
        assert after.count('class="point"') >= 2
    assert shown.stdout.count('aria-pressed="true"') >= 10  # the legends' entries
