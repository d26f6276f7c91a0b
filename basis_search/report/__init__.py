"""The report of a run folder: one self-contained HTML page, and PNG plots."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.files import file_name

__all__ = ["figures", "write"]


def write(run: Path | str, against: Path | str | None = None) -> Path:
    """Writes report.html, front_flops.png, front_latency.png and layers.png into the run folder.

    The HTML needs no network. A run that is still going or was stopped is reported up to its last evaluation. With
    `against`, another run folder, the page is report-against-<its name>.html and compares the two.

    Returns:
        the path of the page.

    Raises:
        BadInput: `run` or `against` is no run folder, nothing was evaluated in it, or a newer version wrote it; the
            two are one folder; or `run` cannot be written to.
    """
    from basis_search.report import page, pictures
    from basis_search.report.run_data import read
    from basis_search.workers.run_folder import RunFolder

    content = read(run)
    other = None if against is None else read(against)
    name = RunFolder(content.path).report_file.name
    if other is not None:
        if other.path.resolve() == content.path.resolve():
            raise BadInput(f"{str(run)!r} and {str(against)!r} are one folder; name another run to compare it with")
        name = f"report-against-{file_name(other.path.resolve().name, '.html')}"
    target = content.path / name
    try:
        pictures.write_all(content, content.path)
        handle, draft = tempfile.mkstemp(dir=content.path, prefix=".report-", suffix=".html")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page.render(content, other))
        os.chmod(draft, 0o644)
        os.replace(draft, target)  # atomic: readers see the old page or the new one
    except OSError as problem:
        raise BadInput(
            f"the report cannot be written to {str(content.path)!r} ({problem.strerror}); make the folder writable or "
            "copy it elsewhere"
        ) from problem
    return target


def figures(run: Path | str, layers: int) -> dict[str, Any]:
    """The page's plots as plotly figures: "model/flops", "model/latency", and "layers/<name>/..." of so many layers.

    Raises:
        BadInput: as `write`.
    """
    from basis_search.report.interactive import plots
    from basis_search.report.run_data import read

    return plots(read(run), layers)
