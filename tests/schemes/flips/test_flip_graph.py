"""The flip graph around a scheme: nodes are exact schemes, edges are moves, files can be read back."""

import networkx as nx
import pytest

import basis_search as bs
from basis_search.errors import BadInput
from basis_search.schemes import BilinearScheme, neighbourhood, save_graph, standard, strassen
from basis_search.schemes.flips.flip_graph import neighbours
from basis_search.schemes.flips.format_graph import graph as graph_of_formats


def test_two_terms_with_a_shared_factor_flip():
    # 1x1x2: a b1 + a b2 share a; over GF(2) each of the two terms may take up the other's b or c
    found = list(neighbours(standard(1, 1, 2).reduce_mod(2)))
    assert len(found) == 2
    assert all(s.verify() and s.rank == 2 for s in found)
    assert len(list(neighbours(standard(1, 1, 2)))) == 4  # and with either sign


def test_strassen_has_no_neighbours():
    assert list(neighbours(strassen().reduce_mod(2))) == []
    assert len(neighbourhood(strassen(), 10)) == 1


@pytest.mark.parametrize("ring", ["Z2", "ZT", "Z"])
def test_nodes_are_exact_and_edges_are_moves(ring):
    start = standard(1, 2, 2)
    start = start.reduce_mod(2) if ring == "Z2" else start.to_ring(ring)
    graph = neighbourhood(start, 40)
    schemes = graph.graph["schemes"]
    assert len(graph) == len(schemes) == 40
    assert len({s.fingerprint for s in schemes}) == 40
    assert all(s.verify() and s.ring == ring for s in schemes)
    for one, other, kind in graph.edges(data="kind"):
        assert abs(graph.nodes[one]["distance"] - graph.nodes[other]["distance"]) <= 1
        assert kind == "flip"
    for one, other in list(graph.edges)[::10]:
        assert schemes[other] in set(neighbours(schemes[one])) or schemes[one] in set(neighbours(schemes[other]))


def test_reductions_lower_the_rank():
    s = strassen()
    U, V, W = (m[[0, 0, *range(1, 7)]] for m in (s.U, s.V, s.W))  # its first product twice, with weights 2 and -1
    weights = [[2], [-1], *[[1]] * 6]
    split = BilinearScheme(2, 2, 2, U, V, W * weights, "Z")
    assert split.verify()
    graph = neighbourhood(split, 60)
    assert {rank for _, rank in graph.nodes(data="rank")} == {7, 8}
    kinds = {kind for a, b, kind in graph.edges(data="kind") if graph.nodes[a]["rank"] != graph.nodes[b]["rank"]}
    assert kinds == {"reduction"}


def test_files_are_written_and_read_back(tmp_path):
    graph = neighbourhood(standard(1, 2, 2).reduce_mod(2), 12)
    save_graph(graph, tmp_path / "flips.graphml")
    save_graph(graph, tmp_path / "flips.png")
    back = nx.read_graphml(tmp_path / "flips.graphml")
    assert (len(back), back.number_of_edges()) == (len(graph), graph.number_of_edges())
    assert back.nodes["0"]["fingerprint"] == graph.nodes[0]["fingerprint"]
    assert (tmp_path / "flips.png").read_bytes().startswith(b"\x89PNG")
    formats = graph_of_formats(3)
    save_graph(formats, tmp_path / "formats.graphml")
    save_graph(formats, tmp_path / "formats.png")
    assert nx.read_graphml(tmp_path / "formats.graphml").number_of_edges() == formats.number_of_edges()


def test_bad_input_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(BadInput, match="1 to 20000"):
        neighbourhood(strassen(), 0)
    with pytest.raises(BadInput, match="not over Q"):
        neighbourhood(strassen().to_ring("Q"), 5)
    with pytest.raises(BadInput, match=r"written as .graphml or .png"):
        save_graph(neighbourhood(strassen(), 1), tmp_path / "graph.svg")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be written"):
        save_graph(neighbourhood(strassen(), 1), tmp_path / "file" / "graph.graphml")


def test_fewest_additions_never_gives_a_worse_scheme():
    start = bs.schemes.laderman()
    found, program = bs.schemes.fewest_additions(start, seconds=4)
    assert (found.shape, found.rank, found.verify()) == (start.shape, start.rank, True)
    assert program.computes(found)
    assert program.additions <= 63
    with pytest.raises(BadInput, match="one format and one rank"):
        bs.schemes.fewest_additions([strassen(), start])
    with pytest.raises(BadInput, match="seconds"):
        bs.schemes.fewest_additions(start, seconds=0)
