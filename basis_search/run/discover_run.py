"""Run `basis-search discover`: a search for exact schemes that shows its progress and saves its results."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tqdm import tqdm

from basis_search import schemes
from basis_search.config import DiscoverConfig
from basis_search.errors import BadInput, near_miss
from basis_search.schemes import BilinearScheme
from basis_search.schemes.algebra.scheme import check_format
from basis_search.schemes.files.graph_files import save_graph
from basis_search.schemes.flips import format_graph
from basis_search.schemes.flips.all_formats import FormatProgress
from basis_search.schemes.flips.flip_graph import neighbourhood
from basis_search.schemes.flips.progress import Progress
from basis_search.schemes.flips.symmetric import symmetric_share
from basis_search.schemes.library.loader import name_of
from basis_search.schemes.numerical.discover import VALUES, StartResult

RINGS = ("Z2", "Z", "ZT")
METHODS = ("walk", "numerical")


def run(config: DiscoverConfig) -> None:
    """Searches one format, or the table of all formats, and prints the result; a search with `out` can be resumed.

    Raises:
        BadInput: a format that is neither n x m x p nor "all", or settings that the search refuses.
    """
    directory = None if config.out is None else Path(config.out)
    if config.method not in METHODS:
        raise BadInput(f"there is no method {config.method!r}{near_miss(config.method, METHODS)}")
    if config.neighbourhood and directory is None:
        raise BadInput(f"neighbourhood={config.neighbourhood} is written into a directory; name one, as in out=found")
    if config.formats not in (None, "all"):
        raise BadInput(f"formats={config.formats!r} can only be all; write format=4x4x4 for one format")
    if "all" in (config.format, config.formats):
        if config.method != "walk":
            raise BadInput(
                "the table of all formats is searched by walks only; method=numerical needs one, such as format=2x3x3"
            )
        _table(config, directory)
        return
    sides = re.fullmatch(r"(\d{1,4})x(\d{1,4})x(\d{1,4})", config.format)
    if sides is None:
        raise BadInput(f"the format {config.format!r} is not n x m x p; write it as 4x4x4, or all for the whole table")
    n, m, p = (int(side) for side in sides.groups())
    check_format(n, m, p)  # before a progress bar is drawn
    if config.method == "numerical":
        _numerical(config, (n, m, p), directory)
        return
    if config.ring not in RINGS:
        if config.ring in VALUES:
            raise BadInput(
                f"walks do not search over {config.ring!r}, but least squares do: set method=numerical rank=..."
            )
        raise BadInput(f"there is no ring {config.ring!r} to search over{near_miss(config.ring, RINGS)}")
    symmetric_share(config.symmetry, (n, m, p), config.ring)
    seconds = round(config.seconds)
    with tqdm(total=seconds, unit="s", desc=f"{config.format} over {config.ring}") as bar:

        def show(state: Progress) -> None:
            bar.update(min(seconds, int(state.seconds)) - bar.n)
            bar.set_postfix_str(f"rank {state.rank}, {state.flips_per_second / 1e6:.1f} million flips/s")

        found = schemes.discover(
            n,
            m,
            p,
            config.ring,
            config.rank,
            config.seconds,
            config.seed,
            config.workers,
            directory=directory,
            symmetry=config.symmetry,
            resume=directory is not None and (directory / f"search-{config.format}-{config.ring}.npz").exists(),
            progress=show,
        )
    print(f"{config.format} over {config.ring}: rank {found.rank} (standard {n * m * p}), verified {found.verify()}")
    if directory is not None:
        print(f"saved in {directory}")
    _around(config, directory, found)


def _numerical(config: DiscoverConfig, shape: tuple[int, int, int], directory: Path | None) -> None:
    if config.rank is None:
        raise BadInput("method=numerical searches for one rank; name it, as in rank=23")
    seconds = round(config.seconds)
    begin = time.monotonic()
    tried = 0
    with tqdm(total=seconds, unit="s", desc=f"{config.format} over {config.ring}") as bar:

        def show(result: StartResult) -> None:
            nonlocal tried
            tried = result.start + 1
            bar.update(min(seconds, int(result.seconds)) - bar.n)
            bar.set_postfix_str(f"start {tried}, residual {result.residual:.1e}")

        found = schemes.discover_numerically(
            *shape, config.rank, config.ring, config.seconds, config.seed, progress=show
        )
    if found is None:
        print(
            f"{config.format} over {config.ring}: none of {tried} starts led to an exact scheme of rank {config.rank}"
        )
        return
    print(f"{config.format} over {found.ring}: rank {found.rank} from start {tried}, verified {found.verify()}")
    if directory is not None:
        facts = {"method": "least squares, rounded", "seed": config.seed, "start": tried - 1}
        facts["clock seconds"] = round(time.monotonic() - begin, 2)
        directory.mkdir(parents=True, exist_ok=True)
        print(f"saved in {directory} as {schemes.Catalogue(directory).add(found, facts)}")
    _around(config, directory, found)


def _around(config: DiscoverConfig, directory: Path | None, found: BilinearScheme | None) -> None:
    """Writes the flip graph around a scheme, or without one the graph of formats, as GraphML and as a picture."""
    if not config.neighbourhood or directory is None:
        return
    graph = format_graph.graph() if found is None else neighbourhood(found, config.neighbourhood)
    name = "formats" if found is None else f"neighbourhood-{name_of(found)}"
    for ending in ("graphml", "png"):
        save_graph(graph, directory / f"{name}.{ending}")
    print(f"{len(graph)} nodes and {graph.number_of_edges()} edges are drawn in {directory / name}.png")


def _table(config: DiscoverConfig, directory: Path | None) -> None:
    seconds = round(config.seconds)
    with tqdm(total=seconds, unit="s", desc=f"all formats over {config.ring}") as bar:

        def show(row: FormatProgress) -> None:
            bar.update(min(seconds, int(row.clock)) - bar.n)
            bar.set_postfix_str(f"sum {row.total}; {'x'.join(map(str, row.format))}: {row.rank}")

        found = schemes.discover_table(
            "all", config.ring, config.seconds, config.seed, config.workers, directory=directory, progress=show
        )
    for sides, scheme in sorted(found.items()):
        print(f"{'x'.join(map(str, sides))}  {scheme.rank}")
    print(f"sum of {len(found)} ranks: {sum(scheme.rank for scheme in found.values())}")
    _around(config, directory, None)
