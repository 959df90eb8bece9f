"""Texts in rows, as trees of tokens, so that beginnings which texts share are computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


# Each node of a row is compared with all others of it; so many cost less than a tenth of the rest.
NODES_OF_A_ROW = 256


@dataclass
class PackedTexts:
    """
    N texts as trees: a node is a token after certain others, and what a causal tower makes of it is the same in every
    text that begins so. "archery", "archery, an action" and "archery this is an action" share two nodes, and all
    labels those of "a photo of action". R rows have room for K nodes each, and hold as many texts as fit.

    Args:
        input_ids (`torch.LongTensor` of shape `(R, K)`):
            The token of each node.
        position_ids (`torch.LongTensor` of shape `(R, K)`):
            Its place in its texts.
        attention_mask (`torch.BoolTensor` of shape `(R, 1, K, K)`):
            What it reads: itself and what is before it.
        ends (`torch.LongTensor` of shape `(R, E)`):
            The nodes that end the texts of a row; those that fill it up are the first.
        places (`torch.LongTensor` of shape `(2, N)`):
            Row of each text, and which of its `ends` is the text's.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    ends: torch.Tensor
    places: torch.Tensor

    @classmethod
    def pack(cls, texts: Sequence[Sequence[int]], device: torch.device) -> "PackedTexts":
        """
        Texts that begin alike, side by side.

        Args:
            texts (`Sequence[Sequence[int]]`):
                The tokens of each text, one at least, without padding.
            device (`torch.device`):
                Where the tensors are to be.
        """
        room, rows = max(NODES_OF_A_ROW, *map(len, texts)), []
        places = np.empty((2, len(texts)), dtype=np.int64)
        for number in sorted(range(len(texts)), key=lambda number: texts[number]):
            if not rows or not rows[-1].has_room(texts[number], room):
                rows.append(_Row())
            places[:, number] = len(rows) - 1, rows[-1].add(texts[number])
        size, num_ends = max(len(row.nodes) for row in rows), max(len(row.ends) for row in rows)
        input_ids, position_ids = np.zeros((2, len(rows), size), dtype=np.int64)
        attention_mask = np.zeros((len(rows), 1, size, size), dtype=bool)
        attention_mask[..., 0] = True  # where there is nothing, the first node is read: no row of a softmax is empty
        ends = np.zeros((len(rows), num_ends), dtype=np.int64)
        for number, row in enumerate(rows):
            ends[number, : len(row.ends)] = row.ends
            reads = attention_mask[number, 0]
            for node, (before, token) in enumerate(row.nodes):
                reads[node] = False if before is None else reads[before]
                position_ids[number, node] = 0 if before is None else position_ids[number, before] + 1
                reads[node, node] = True
                input_ids[number, node] = token
        tensors = (input_ids, position_ids, attention_mask, ends, places)
        return cls(*(torch.from_numpy(tensor).to(device) for tensor in tensors))

    def readers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in `(R, K)` the `ends` are."""
        return torch.arange(len(self.ends), device=self.ends.device)[:, None], self.ends


class _Row:
    """Nodes, by the node before each of them and its token, in an order in which what is before comes first."""

    def __init__(self):
        self.nodes: dict[tuple[int | None, int], int] = {}
        self.ends: list[int] = []

    def has_room(self, tokens: Sequence[int], room: int) -> bool:
        node, shared = None, 0
        while shared < len(tokens) and (node := self.nodes.get((node, tokens[shared]))) is not None:
            shared += 1
        return len(self.nodes) + len(tokens) - shared <= room

    def add(self, tokens: Sequence[int]) -> int:
        node = None
        for token in tokens:
            node = self.nodes.setdefault((node, token), len(self.nodes))
        self.ends.append(node)
        return len(self.ends) - 1
