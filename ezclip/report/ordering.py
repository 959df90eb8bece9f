"""Order classes so that confused classes are neighbours."""

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform


MAX_GROUP = 12
NUM_GROUPS = 6
MAX_OPTIMAL = 500  # classes in optimal order, which takes cubic time: 2 seconds for 500


def order_classes(counts: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """
    Order classes by hierarchical clustering: average linkage of the fractions of videos that two classes exchange.

    Args:
        counts (`np.ndarray` of shape `(C, C)`):
            Number of videos of each class (rows) that are predicted as each class (columns).

    Returns:
        `tuple`: the classes in their order, `(C,)`; and the groups of at most 12 neighbours with the most confusions,
        as first position and position after the last, most confusions first.
    """
    size = len(counts)
    if size < 3:
        return np.arange(size), []
    fractions = row_fractions(counts)
    similarity = (fractions + fractions.T) / 2
    np.fill_diagonal(similarity, 0)
    distances = squareform(1 - similarity, checks=False)
    tree = linkage(distances, "average")
    if size <= MAX_OPTIMAL:
        tree = optimal_leaf_ordering(tree, distances)
    order = leaves_list(tree)

    confused = (counts - np.diag(np.diag(counts)))[np.ix_(order, order)]
    sizes = [1] * size + tree[:, 3].astype(int).tolist()  # of leaves, then of clusters; the root is last
    found, waiting = [], [(len(sizes) - 1, 0)]
    while waiting:
        node, start = waiting.pop()
        end = start + sizes[node]
        if sizes[node] > MAX_GROUP:
            left, right = tree[node - size, :2].astype(int)
            waiting += [(left, start), (right, start + sizes[left])]
        elif inside := int(confused[start:end, start:end].sum()):
            found.append((-inside, start, end))
    return order, [(start, end) for _, start, end in sorted(found)[:NUM_GROUPS]]


def row_fractions(counts: np.ndarray) -> np.ndarray:
    """Divide each row by its sum, if that is not 0."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
