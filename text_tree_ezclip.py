"""Texts as a tree of tokens, so that beginnings which texts share are computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass
class TextTree:
    """
    N texts of at most L tokens as K nodes: a node is a token after certain others. A causal tower makes the same of it
    in every text that begins so: "archery", "archery, an action" and "archery this is an action" share two nodes, and
    all labels those of "a photo of action". Nothing is padded but in attention.

    Args:
        input_ids (`torch.LongTensor` of shape `(K, 1)`):
            The token of each node.
        position_ids (`torch.LongTensor` of shape `(K, 1)`):
            Its place in its texts.
        paths (`torch.LongTensor` of shape `(N, L)`):
            The node of each token of each text; of padding, which stands at the end, any.
        ends (`torch.LongTensor` of shape `(N,)`):
            The last node of each text.
        readers (`torch.LongTensor` of shape `(R,)` or `slice`):
            The nodes for which attention is computed.
        places (`torch.LongTensor` of shape `(R,)`):
            Where each of them stands in the flattened `paths`, for the first time.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    paths: torch.Tensor
    ends: torch.Tensor
    readers: torch.Tensor | slice
    places: torch.Tensor

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], device: torch.device) -> "TextTree":
        """
        The tree of texts.

        Args:
            texts (`Sequence[Sequence[int]]`):
                The tokens of each text, one at least, without padding.
            device (`torch.device`):
                Where its tensors are to be.
        """
        longest = max(map(len, texts))
        nodes, places, paths = {}, [], []
        for number, tokens in enumerate(texts):
            node, path = None, []
            for position, token in enumerate(tokens):
                node = nodes.setdefault((node, token), len(nodes))
                if node == len(places):
                    places.append(number * longest + position)
                path.append(node)
            paths.append(path + path[-1:] * (longest - len(path)))
        places = torch.tensor(places)
        return cls(
            input_ids=torch.tensor([[token] for _, token in nodes], device=device),
            position_ids=(places % longest)[:, None].to(device),
            paths=torch.tensor(paths, device=device),
            ends=torch.tensor([path[-1] for path in paths], device=device),
            readers=slice(None),
            places=places.to(device),
        )

    def at_ends(self) -> "TextTree":
        """The same tree, of which only the last nodes read: one for each text."""
        return replace(self, readers=self.ends, places=self.places[self.ends])

    def by_text(self, states: torch.Tensor) -> torch.Tensor:
        """States of nodes `(1, K, D)` by text, `(N, L, D)`."""
        return states[0, self.paths]

    def of_readers(self, states: torch.Tensor) -> torch.Tensor:
        """Those of `(1, K, D)` that read, `(1, R, D)`."""
        return states[:, self.readers]

    def from_texts(self, states: torch.Tensor) -> torch.Tensor:
        """States by text `(N, L, D)` of those that read, `(1, R, D)`."""
        return states.flatten(0, 1)[self.places][None]
