"""Graphs of schemes and of formats as files: GraphML for other programs, PNG as a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from basis_search.errors import BadInput

if TYPE_CHECKING:
    import networkx as nx


def save_graph(graph: nx.Graph, path: str | os.PathLike[str]) -> None:
    """Writes a neighbourhood or the graph of formats as .graphml or .png, by the suffix.

    Raises:
        BadInput: another suffix, or a file that cannot be written.
    """
    target = Path(path)
    if target.suffix not in (".graphml", ".png"):
        raise BadInput(f"{target} ends in {target.suffix or 'nothing'}; graphs are written as .graphml or .png")
    import networkx as nx

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".graphml":
            plain = graph.copy()
            plain.graph.pop("schemes", None)
            nx.write_graphml(plain, target)
        else:
            _draw(graph, target)
    except OSError as error:
        raise BadInput(f"{target} cannot be written: {error}") from error


def _draw(graph: nx.Graph, path: Path) -> None:
    import networkx as nx
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    if graph.is_directed():  # the graph of formats
        layers = {node: data["n"] + data["m"] + data["p"] for node, data in graph.nodes(data=True)}
        nx.set_node_attributes(graph, layers, "layer")
        places = nx.multipartite_layout(graph, subset_key="layer")
        colours = {"merge": "#4477aa", "project": "#bbbbbb", "product": "#cc6677"}
        for kind, colour in colours.items():
            edges = {(a, b) for a, b, data in graph.edges(data=True) if data["kind"] == kind}
            nx.draw_networkx_edges(
                graph, places, edgelist=sorted(edges), edge_color=colour, width=0.5, arrowsize=5, ax=axes, node_size=260
            )
            axes.plot([], [], color=colour, label=kind)
        nx.draw_networkx_nodes(graph, places, node_color="white", edgecolors="#333333", node_size=260, ax=axes)
        nx.draw_networkx_labels(graph, places, font_size=5, ax=axes)
        axes.set_title("formats built from other formats")
    else:
        places = nx.spring_layout(graph, seed=0)
        ranks = sorted({rank for _, rank in graph.nodes(data="rank")})
        for k, rank in enumerate(ranks):
            held = [node for node, data in graph.nodes(data=True) if data["rank"] == rank]
            colour = ("#4477aa", "#cc6677", "#ddcc77", "#117733", "#882255")[k % 5]
            sizes = [140 if node == 0 else 24 for node in held]
            nx.draw_networkx_nodes(
                graph, places, nodelist=held, node_size=sizes, node_color=colour, ax=axes, label=f"rank {rank}"
            )
        flips = [(a, b) for a, b, kind in graph.edges(data="kind") if kind == "flip"]
        drops = [(a, b) for a, b, kind in graph.edges(data="kind") if kind == "reduction"]
        nx.draw_networkx_edges(graph, places, edgelist=flips, width=0.4, edge_color="#999999", ax=axes)
        nx.draw_networkx_edges(graph, places, edgelist=drops, width=0.8, edge_color="#cc6677", style="dashed", ax=axes)
        axes.set_title(f"{graph.graph.get('name', '')}: {len(graph)} schemes, {graph.number_of_edges()} moves")
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
