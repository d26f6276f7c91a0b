"""Comparison of two runs on one page, and the page in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up_run import a_run

from basis_search import report
from basis_search.cli import main
from basis_search.errors import BadInput
from basis_search.report.comparison import compare
from basis_search.report.comparison import model_panel as comparison_panel
from basis_search.report.interactive import figure
from basis_search.report.run_data import read

pytestmark = pytest.mark.fast

Write = Callable[..., Path]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    here = a_run(tmp_path / "after", layers=3, trials=9, workers=2)
    there = a_run(tmp_path / "before", layers=2, trials=4, workers=1, seed=3)
    (here / "config.yaml").write_text("seed: 0\ntrials: 9\nspaces:\n  pq:\n    most: 4\nrun: a\n")
    (there / "config.yaml").write_text("seed: 0\ntrials: 4\nspaces:\n  pq:\n    most: 8\nrun: b\n")
    return here, there


def test_budgets_layers_and_settings_are_those_of_the_folders(two: tuple[Path, Path]) -> None:
    here, there = map(read, two)
    against = compare(here, there)
    assert against.name == "before"
    plans = {p.name: p for p in there.plans}
    assert {row.name for row in against.budgets} == {p.name for p in here.plans} | set(plans)
    assert all(row.there == plans.get(row.name) for row in against.budgets)
    assert against.measured
    assert [row.layer for row in against.layers] == list(there.layers)
    for row in against.layers:
        assert row.volume_here == pytest.approx(here.fronts[row.layer].hypervolume())
        assert row.volume_there == pytest.approx(there.fronts[row.layer].hypervolume())
        assert row.evaluated_there == sum(e.candidate.layer == row.layer for e in there.evaluations)
    assert against.settings == (("trials", "9", "4"), ("spaces.pq.most", "4", "8"))
    (note,) = against.notes
    assert note.startswith(f"1 layers were searched in only one of the runs, such as {here.layers[2]}")


def test_other_devices_and_other_weights_are_noted(two: tuple[Path, Path]) -> None:
    text = (two[1] / "evaluations.jsonl").read_text()
    (two[1] / "evaluations.jsonl").write_text(text.replace("Test processor", "Another one"))
    lines = [json.loads(line) for line in (two[1] / "evaluations.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"layer_hash": "f" * 64}) + "\n" for line in lines)
    (two[1] / "evaluations.jsonl").write_text(text)
    notes = " ".join(compare(read(two[0]), read(two[1])).notes)
    assert "different devices (Test processor, 1 threads, torch 2.13.0; in the other run Another one" in notes
    assert "2 layers of the same name differ in their weights" in notes


def test_a_log_axis_within_one_power_of_ten_has_ticks(two: tuple[Path, Path]) -> None:
    panel = comparison_panel(compare(read(two[0]), read(two[1])), "flops")
    values = [y for series in panel.series for y in series.y]
    assert panel.y_log
    assert max(values) < 100 * min(values)
    assert figure(panel)["layout"]["yaxis"]["dtick"] == "D2"


@pytest.mark.slow
def test_comparing_a_run_with_itself_is_refused(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="are one folder"):
        report.write(two[0], two[0].parent / "." / "after")
    with pytest.raises(BadInput, match="there is no run folder"):
        report.write(two[0], two[0] / "nowhere")
    assert main(["report", str(two[0]), "--against", str(two[1])]) == 0
    assert capsys.readouterr().out.strip() == str(two[0] / "report-against-before.html")
    assert not (two[0] / "report.html").exists()


class Words(HTMLParser):
    """The text that a reader sees inside one section."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(dom)

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def chromium() -> str:
    """The browser; without one the test is skipped, but never in continuous integration."""
    found = shutil.which("chromium")
    if found is None:
        assert not os.environ.get("CI"), "continuous integration needs chromium; ./scripts/test installs it as root"
        pytest.skip("no chromium on this machine: ./scripts/test installs it where it may")
    return found


def in_browser(page: Path, profile: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
         f"--user-data-dir={profile}", "--virtual-time-budget=20000", *words, page.as_uri()],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_browser_shows_both_runs(two: tuple[Path, Path], tmp_path: Path) -> None:
    page = report.write(two[0], two[1])
    shown = in_browser(page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in shown.stderr, shown.stderr
    dom = shown.stdout
    for place in ("against.flops", "against.latency", "fronts.flops", "fronts.latency"):
        drawn = dom.split(f'data-figure="{place}"', 1)[1].split("data-figure=", 1)[0]
        assert 'class="main-svg"' in drawn
        assert drawn.count('class="point"') >= 4
    section = Words(dom.split('<section id="against">', 1)[1].split("</section>", 1)[0]).text
    against = compare(read(two[0]), read(two[1]))
    for row in against.layers:
        assert row.layer in section
        assert f"{row.volume_there:.3g}" in section
    for budget in against.budgets:
        assert budget.name in section
    assert "spaces.pq.most" in section
    assert re.search(r"this run\s+before", section)


@pytest.mark.slow
def test_a_picture_of_the_page_is_taken(two: tuple[Path, Path], tmp_path: Path) -> None:
    from matplotlib.image import imread

    picture: Any = tmp_path / "page.png"
    size = ("--window-size=1240,3400", "--hide-scrollbars", f"--screenshot={picture}")
    in_browser(report.write(two[0], two[1]), tmp_path / "profile", *size)
    pixels = imread(picture)
    assert pixels.shape[:2] == (3400, 1240)
    codes = (pixels[..., :3] * 255).round().astype(int) @ [65536, 256, 1]
    assert 0xD55E00 in codes  # the other run's colour: the plots are drawn
