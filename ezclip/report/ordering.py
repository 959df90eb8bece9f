"""An order of classes in which those that are confused stand together, and the groups that this makes."""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering, to_tree
from scipy.spatial.distance import squareform


LARGEST_GROUP = 12
NUM_GROUPS = 6
# The best of all orders of a tree takes time with the cube of the classes: two seconds of these.
LARGEST_OPTIMAL = 500


@dataclass
class ClassOrder:
    """
    Classes in an order.

    Args:
        order (`np.ndarray` of shape `(C,)`):
            Which class stands at each place.
        groups (`list[tuple[int, int]]`):
            Places, from and to (not included), of groups of at most 12 classes, most confusions inside them first.
    """

    order: np.ndarray
    groups: list[tuple[int, int]]


def order_classes(counts: np.ndarray) -> ClassOrder:
    """
    Order classes by hierarchical clustering: average linkage of what parts of two classes are taken for each other.

    Args:
        counts (`np.ndarray` of shape `(C, C)`):
            Videos of each class (rows) that are taken for each class (columns).
    """
    size = len(counts)
    if size < 3:
        return ClassOrder(np.arange(size), [])
    parts = row_parts(counts)
    likeness = (parts + parts.T) / 2
    np.fill_diagonal(likeness, 0)
    distances = squareform(1 - likeness, checks=False)
    tree = linkage(distances, "average")
    if size <= LARGEST_OPTIMAL:
        tree = optimal_leaf_ordering(tree, distances)
    order = leaves_list(tree)
    places = np.empty(size, dtype=int)
    places[order] = np.arange(size)

    confused = counts - np.diag(np.diag(counts))
    found, waiting = [], [to_tree(tree)]
    while waiting:
        node = waiting.pop()
        if node.count > LARGEST_GROUP:
            waiting += [node.left, node.right]
        elif node.count > 1:
            members = node.pre_order()
            inside, start = int(confused[np.ix_(members, members)].sum()), int(places[members].min())
            if inside:
                found.append((-inside, start, start + node.count))
    return ClassOrder(order, [(start, end) for _, start, end in sorted(found)[:NUM_GROUPS]])


def row_parts(counts: np.ndarray) -> np.ndarray:
    """Rows of counts as parts of their sum; zeros where it is zero."""
    sums = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0)
