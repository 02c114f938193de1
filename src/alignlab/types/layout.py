"""The packed layout: groups concatenated into one sequence without padding, and the indices needed for attention.

A group is given by its lengths ``(prompt, completion, completion, …)``. Each completion attends to its prompt and to
itself, so a *path* (prompt + completion) attends exactly as a separate sequence would, while the prompt is computed
once. Position ids restart at every group, and every completion continues from its prompt's length.

Attention is computed in buckets of segments of similar length, padded within a bucket only. The keys of a bucket are
in path order, so query i of a row may attend to key j exactly when ``j <= offset + i``: a real query never attends to
the padding at the right end, which needs no separate mask.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# A segment joins a bucket if it has at least this share of the bucket's longest segment, or is at most so many tokens
# shorter: padding costs wasted products, another bucket costs another kernel call.
MIN_FILL = 0.8
MAX_SLACK_TOKENS = 16


@dataclass(frozen=True)
class Bucket:
    """Segments of similar length that attend in one call.

    Args:
        queries: Flat positions of the query tokens, padded with the first one. Shape ``[b, Lq]``.
        keys: Flat positions of the key tokens in path order, padded in the same way. Shape ``[b, Lk]``.
        offset: Path position of each row's first query; 0 for a prompt or a plain document. Shape ``[b]``.
        causal: Whether every offset is 0, so that plain causal attention is exact.
    """

    queries: Tensor
    keys: Tensor
    offset: Tensor
    causal: bool

    def mask(self, window: int | None = None) -> Tensor:
        """Whether each query may attend to each key.

        Args:
            window: Attend to the last ``window`` path positions only; ``None`` for all.

        Returns:
            Shape ``[b, 1, Lq, Lk]``, bool.
        """
        query = self.offset[:, None, None] + torch.arange(self.queries.shape[1], device=self.queries.device)[:, None]
        key = torch.arange(self.keys.shape[1], device=self.keys.device)
        seen = key <= query
        if window is not None:
            seen = seen & (key > query - window)
        # A padding query beyond the window would attend to nothing and give NaN. Its output is unused: let it see all.
        return (seen | ~seen.any(-1, keepdim=True))[:, None]


@dataclass(frozen=True)
class PackedLayout:
    """Attention of a flat sequence.

    Args:
        buckets: Together they contain every token exactly once as a query.
        restore: Index of each token of the flat sequence in the concatenated outputs of the buckets. Shape ``[T]``.
        longest_path: Tokens of the longest prompt + completion.
        windows: Sliding windows with which layers used this layout, recorded for ``scoring.verify``.
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
    """Build the attention layout of concatenated groups.

    Args:
        groups: For each group its lengths ``(prompt, completion, …)`` in tokens; any of them may be 0.

    Returns:
        The layout of ``T = sum of all lengths`` tokens.
    """
    segments = [segment for segment in _segments(groups) if segment[1] > 0]
    # Plain causal segments first, then those that also attend to a prompt; within each the longest first.
    segments.sort(key=lambda segment: (segment[2] > 0, -segment[1] - segment[2], -segment[1], segment[0]))
    buckets, indices, base = [], {}, 0
    for group in _grouped(segments):
        width, depth = max(s[1] for s in group), max(s[1] + s[2] for s in group)
        for row, (start, length, _, _) in enumerate(group):
            indices[start] = (base + row * width, length)
        base += len(group) * width
        buckets.append(_bucket(group, width, depth))
    restore = [torch.arange(index, index + length) for _, (index, length) in sorted(indices.items())]
    longest = max((s[1] + s[2] for s in segments), default=0)
    return PackedLayout(tuple(buckets), torch.cat(restore) if restore else torch.empty(0, dtype=torch.long), longest)


def positions(groups: Iterable[Sequence[int]]) -> Tensor:
    """Position ids of concatenated groups: each completion continues from its prompt. Shape ``[T]``."""
    parts = [torch.arange(before, before + length) for _, length, before, _ in _segments(groups)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def _segments(groups: Iterable[Sequence[int]]) -> list[tuple[int, int, int, int]]:
    """Query segments as ``(start, length, tokens before it on its path, start of those)``.

    A group with a single completion is one causal segment: prompt and completion together.
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
