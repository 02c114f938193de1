"""The flat forest: trees laid end to end in one sequence without padding, and the index arithmetic to attend in it.

A tree is ``(prompt, completion, completion, …)`` given by its lengths. Each completion attends to its prompt and to
itself, so a *path* (prompt + completion) sees exactly what a sequence of its own would see, while the prompt is
computed once. Position ids restart at every tree, and every completion continues from its prompt's length.

Attention is computed in buckets of segments of similar length, padded within a bucket only. A bucket's keys stand in
path order, so key j may be seen by query i of a row exactly when ``j <= offset + i``: padding at the right end is
never seen by a real query, and needs no mask of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# A segment joins a bucket when it is at least this share of the bucket's longest, or within these many tokens of it:
# wasted products on one side, one more kernel call on the other.
MIN_FILL = 0.8
MAX_SLACK_TOKENS = 16


@dataclass(frozen=True)
class Bucket:
    """Segments of similar length that attend in one call.

    Args:
        queries: Flat positions of the query tokens, padded with the first one. Shape ``[b, Lq]``.
        keys: Flat positions of the key tokens in path order, padded likewise. Shape ``[b, Lk]``.
        offset: Path position of each row's first query; 0 for a prompt or a plain document. Shape ``[b]``.
        causal: Whether every offset is 0, so that plain causal attention is exact.
    """

    queries: Tensor
    keys: Tensor
    offset: Tensor
    causal: bool

    def mask(self, window: int | None = None) -> Tensor:
        """Which key each query sees, optionally only the last ``window`` path positions. Shape ``[b, 1, Lq, Lk]``."""
        query = self.offset[:, None, None] + torch.arange(self.queries.shape[1], device=self.queries.device)[:, None]
        key = torch.arange(self.keys.shape[1], device=self.keys.device)
        seen = key <= query
        if window is not None:
            seen = seen & (key > query - window)
        # A padding query past the window's reach would see nothing and give NaN; nobody reads it, so it sees all.
        return (seen | ~seen.any(-1, keepdim=True))[:, None]


@dataclass(frozen=True)
class PackedLayout:
    """How a flat sequence attends.

    Args:
        buckets: Together they hold every token exactly once as a query.
        restore: For each token of the flat sequence its place in the buckets' outputs laid end to end. Shape ``[T]``.
        longest_path: Tokens of the longest prompt + completion.
        windows: Sliding windows that layers asked for while they attended in it, for ``scoring.verify``.
    """

    buckets: tuple[Bucket, ...]
    restore: Tensor
    longest_path: int
    windows: set[int | None] = field(default_factory=set, compare=False)

    def to(self, device, non_blocking: bool = False) -> "PackedLayout":
        """The same layout with its indices on another device."""
        options = {"device": device, "non_blocking": non_blocking}
        buckets = (
            Bucket(b.queries.to(**options), b.keys.to(**options), b.offset.to(**options), b.causal)
            for b in self.buckets
        )
        return PackedLayout(tuple(buckets), self.restore.to(**options), self.longest_path)


def packed_layout(groups: Iterable[Sequence[int]]) -> PackedLayout:
    """Lay out the attention of trees that stand end to end.

    Args:
        groups: Per tree its lengths ``(prompt, completion, …)`` in tokens; 0 is allowed for any of them.

    Returns:
        The layout of ``T = sum of all lengths`` tokens.
    """
    segments = [segment for segment in _segments(groups) if segment[1] > 0]
    # Plain causal segments apart from those that look back at a prompt; then the longest first.
    segments.sort(key=lambda segment: (segment[2] > 0, -segment[1] - segment[2], -segment[1], segment[0]))
    buckets, places, base = [], {}, 0
    for group in _grouped(segments):
        width, depth = max(s[1] for s in group), max(s[1] + s[2] for s in group)
        for row, (start, length, _, _) in enumerate(group):
            places[start] = (base + row * width, length)
        base += len(group) * width
        buckets.append(_bucket(group, width, depth))
    restore = [torch.arange(place, place + length) for _, (place, length) in sorted(places.items())]
    longest = max((s[1] + s[2] for s in segments), default=0)
    return PackedLayout(tuple(buckets), torch.cat(restore) if restore else torch.empty(0, dtype=torch.long), longest)


def positions(groups: Iterable[Sequence[int]]) -> Tensor:
    """Position ids of trees laid end to end: each completion continues from its prompt. Shape ``[T]``."""
    parts = [torch.arange(before, before + length) for _, length, before, _ in _segments(groups)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def _segments(groups: Iterable[Sequence[int]]) -> list[tuple[int, int, int, int]]:
    """Per query segment ``(start, length, tokens before it on its path, start of those)``.

    A tree with a single completion is one causal segment: prompt and completion together.
    """
    segments, start = [], 0
    for prompt, *completions in groups:
        if len(completions) == 1:
            segments.append((start, prompt + completions[0], 0, start))
        else:
            segments.append((start, prompt, 0, start))
            for index, length in enumerate(completions):
                segments.append((start + prompt + sum(completions[:index]), length, prompt, start))
        start += prompt + sum(completions)
    return segments


def _grouped(segments: list[tuple[int, int, int, int]]) -> Iterable[list[tuple[int, int, int, int]]]:
    """Cut the sorted segments into buckets."""
    group: list[tuple[int, int, int, int]] = []
    for segment in segments:
        if group and not _fits(segment, group[0]):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _fits(segment: tuple[int, int, int, int], longest: tuple[int, int, int, int]) -> bool:
    _, length, before, _ = segment
    _, most, most_before, _ = longest
    if (before > 0) != (most_before > 0):
        return False
    path, longest_path = length + before, most + most_before
    close = path >= MIN_FILL * longest_path or longest_path - path <= MAX_SLACK_TOKENS
    return close and abs(length - most) <= max(MAX_SLACK_TOKENS, (1 - MIN_FILL) * most)


def _bucket(group: list[tuple[int, int, int, int]], width: int, depth: int) -> Bucket:
    queries = torch.zeros(len(group), width, dtype=torch.long)
    keys = torch.zeros(len(group), depth, dtype=torch.long)
    for row, (start, length, before, before_start) in enumerate(group):
        own = torch.arange(start, start + length)
        queries[row] = start
        queries[row, :length] = own
        keys[row] = start
        keys[row, :before] = torch.arange(before_start, before_start + before)
        keys[row, before : before + length] = own
    offset = torch.tensor([segment[2] for segment in group])
    return Bucket(queries, keys, offset, causal=not offset.any())
