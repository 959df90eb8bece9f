"""Order classes so that confused classes are neighbours."""

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering, to_tree
from scipy.spatial.distance import squareform
from sklearn.preprocessing import normalize


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
    fractions = normalize(counts, norm="l1")
    similarity = (fractions + fractions.T) / 2
    np.fill_diagonal(similarity, 0)
    distances = squareform(1 - similarity, checks=False)
    tree = linkage(distances, "average")
    if size <= MAX_OPTIMAL:
        tree = optimal_leaf_ordering(tree, distances)
    order = leaves_list(tree)

    confused = (counts - np.diag(np.diag(counts)))[np.ix_(order, order)]
    found, waiting = [], [(to_tree(tree), 0)]
    while waiting:
        node, start = waiting.pop()
        end = start + node.count
        if node.count > MAX_GROUP:
            waiting += [(node.left, start), (node.right, start + node.left.count)]
        elif inside := int(confused[start:end, start:end].sum()):
            found.append((-inside, start, end))
    return order, [(start, end) for _, start, end in sorted(found)[:NUM_GROUPS]]
