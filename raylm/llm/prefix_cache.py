"""Keys and values of token prefixes, to the token, in a radix tree that forgets what was used longest ago."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(slots=True, eq=False)
class _Node:
    tokens: list[int]
    data: torch.Tensor
    """[..., len(tokens), head size]."""
    parent: _Node | None
    used: int = 0
    children: dict[int, _Node] = field(default_factory=dict)
    """By their first token."""


class PrefixCache:
    """Maps token prefixes to tensors whose second-last dimension runs over tokens."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens = 0
        """Tokens held now."""
        self._root = _Node([], torch.empty(0), None)
        self._clock = 0

    def match(self, ids: Sequence[int]) -> tuple[int, list[torch.Tensor]]:
        """The longest known prefix of `ids`.

        Returns:
            its length, and its data in pieces to be laid end to end.
        """
        self._clock += 1
        node, length, pieces = self._root, 0, []
        while (child := node.children.get(ids[length]) if length < len(ids) else None) is not None:
            child.used = self._clock
            shared = common_prefix(child.tokens, ids[length : length + len(child.tokens)])
            pieces.append(child.data[..., :shared, :])
            length += shared
            if shared < len(child.tokens):
                break
            node = child
        return length, pieces

    def insert(self, ids: Sequence[int], read: Callable[[int, int], torch.Tensor]) -> None:
        """Remember `ids`; `read(start, end)` gives a copy of the data of the tokens that are not known yet."""
        if len(ids) > self.max_tokens:
            return
        self._clock += 1
        node, length = self._root, 0
        while length < len(ids):
            child = node.children.get(ids[length])
            if child is None:
                child = _Node(list(ids[length:]), read(length, len(ids)), node)
                node.children[ids[length]] = child
                self.tokens += len(child.tokens)
            else:
                shared = common_prefix(child.tokens, ids[length : length + len(child.tokens)])
                if shared < len(child.tokens):
                    child = _split(child, shared)
            child.used = self._clock
            length += len(child.tokens)
            node = child
        if self.tokens > self.max_tokens:
            self._forget()

    def clear(self) -> None:
        """Forget everything."""
        self._root.children.clear()
        self.tokens = 0

    def _forget(self) -> None:
        """Drop leaves, the longest unused first, until a tenth is free; a parent is a leaf once it has no child."""
        goal = self.max_tokens * 9 // 10
        while self.tokens > goal:
            leaves = sorted((node for node in self._nodes() if not node.children), key=lambda node: node.used)
            for leaf in leaves:
                if self.tokens <= goal:
                    return
                assert leaf.parent is not None
                del leaf.parent.children[leaf.tokens[0]]
                self.tokens -= len(leaf.tokens)

    def _nodes(self) -> Iterator[_Node]:
        pending = list(self._root.children.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def _split(node: _Node, at: int) -> _Node:
    """Cut a node in two and return the upper one. The parts are copied, so that each can be freed alone."""
    upper = _Node(node.tokens[:at], node.data[..., :at, :].clone(), node.parent, node.used)
    assert node.parent is not None
    node.parent.children[upper.tokens[0]] = upper
    node.tokens, node.data, node.parent = node.tokens[at:], node.data[..., at:, :].clone(), upper
    upper.children[node.tokens[0]] = node
    return upper
