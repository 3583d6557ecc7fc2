"""Geodesic wave fronts in a lumen: a tree whose branchings lie at the spurs.

The distance of each voxel from the top of the trachea, along paths inside the lumen, is cut into layers;
the connected pieces of a layer are fronts. A front splits where the lumens part, at the spur, while a
skeleton gives the node of the centrelines, some 10 mm above it. Positions are in voxels here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, dijkstra

Array = NDArray[Any]


class Graph(NamedTuple):
    """Voxels [N, 3] of a mask and their pairs [M, 2] of 26-neighbours, `length` [M] voxels apart."""

    voxels: Array
    pairs: Array
    length: Array


class Fronts(NamedTuple):
    """F wave fronts: layer [F], parent [F] (-1 for a root), and their voxels [n, 3], one array each."""

    layer: Array
    parent: Array
    voxels: list[Array]


def neighbour_graph(mask: Array) -> Graph:
    """The 26-neighbourhood of a mask [X, Y, Z] as a graph."""
    voxels = np.argwhere(mask)
    number = np.full(mask.shape, -1, np.int32)
    number[tuple(voxels.T)] = np.arange(len(voxels), dtype=np.int32)
    steps = np.array(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij")).reshape(3, -1).T
    pairs, length = [], []
    for step in steps[14:]:  # one of each two opposite steps
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, mask.shape, strict=True))
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, mask.shape, strict=True))
        first, second = number[here].ravel(), number[there].ravel()
        both = (first >= 0) & (second >= 0)
        pairs.append(np.stack([first[both], second[both]], -1))
        length.append(np.full(np.count_nonzero(both), np.linalg.norm(step)))
    return Graph(voxels, np.concatenate(pairs), np.concatenate(length))


def wave_fronts(graph: Graph, keep: Array, start: Array, layer: float) -> Fronts:
    """Fronts `layer` voxels thick, of the voxels `keep` [N] that are connected to those of `start` [N].

    The parent of a front is the front that most of its shortest paths come from.
    """
    kept = np.flatnonzero(keep)
    number = np.full(len(keep), -1)
    number[kept] = np.arange(len(kept))
    edges = keep[graph.pairs].all(1)
    pairs, length = number[graph.pairs[edges]], graph.length[edges]
    sources = number[np.flatnonzero(start & keep)]
    if not len(sources):
        return Fronts(np.zeros(0, int), np.zeros(0, int), [])
    size = (len(kept), len(kept))
    links = coo_matrix((length, tuple(pairs.T)), shape=size).tocsr()
    distance, before, _ = dijkstra(
        links, directed=False, indices=sources, min_only=True, return_predecessors=True
    )
    reached = np.isfinite(distance)
    layers = np.full(len(kept), -1)
    layers[reached] = (distance[reached] / layer).astype(int)
    same = pairs[(layers[pairs[:, 0]] == layers[pairs[:, 1]]) & reached[pairs[:, 0]]]
    links = coo_matrix((np.ones(len(same)), tuple(same.T)), shape=size)
    piece = connected_components(links, directed=False)[1]
    names, piece_of = np.unique(piece[reached], return_inverse=True)
    front = np.full(len(kept), -1)
    front[reached] = piece_of
    order = np.argsort(piece_of, kind="stable")
    ends = np.searchsorted(piece_of[order], np.arange(1, len(names)))
    places = graph.voxels[kept[reached]][order]
    first = np.flatnonzero(reached)[order][np.concatenate([[0], ends])]
    return Fronts(layers[first], _parents(front, before, len(names)), np.split(places, ends))


def _parents(front: Array, before: Array, count: int) -> Array:
    """[count]: the front that most predecessors of a front's voxels belong to, itself excepted."""
    child = np.flatnonzero((front >= 0) & (before >= 0))
    pairs = np.stack([front[child], front[before[child]]], -1)
    pairs, votes = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0, return_counts=True)
    parent = np.full(count, -1)
    for k in np.argsort(votes, kind="stable"):  # the most votes last
        parent[pairs[k, 0]] = pairs[k, 1]
    return parent
