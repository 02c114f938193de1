"""The packed layout: groups concatenated into one sequence without padding, and the indices needed for attention.

A group is given by its lengths ``(prompt, completion, completion, …)``. Each completion attends to its prompt and to
itself, so a *path* (prompt + completion) attends exactly as a separate sequence would, while the prompt is computed
once. Position ids restart at every group, and every completion continues from its prompt's length.

Attention is computed in buckets of segments of similar length, padded within a bucket only. The keys of a bucket are
in path order, so query i of a row may attend to key j exactly when ``j <= offset + i``: a real query never attends to
the padding at the right end, which needs no separate mask.

Kernels for segments of varying length need no buckets: they take the flat sequence as it is, and the cumulative lengths
in ``Segments``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

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
class Lengths:
    """Lengths of adjacent segments, none of them empty.

    Args:
        cumulative: Start of each of the n segments, and the end of the last. Shape ``[n + 1]``, int32.
        longest: Tokens of the longest segment; 0 if there is none.
    """

    cumulative: Tensor
    longest: int

    @staticmethod
    def of(lengths: Sequence[int]) -> "Lengths":
        """Add the lengths up."""
        return Lengths(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), max(lengths, default=0))

    def to(self, **options) -> "Lengths":
        """The same lengths on another device."""
        return Lengths(self.cumulative.to(**options), self.longest)


@dataclass(frozen=True)
class SharedPrompts:
    """What the causal segments lack: in groups with several completions, these also attend to their whole prompt.

    The completions of a group are adjacent and see the same keys, so they are one block of queries. Groups without a
    prompt, or without a completion token, are left out: a query without keys has no softmax.

    Args:
        queries: Flat positions of the completions' tokens. Shape ``[Q]``.
        keys: Flat positions of the prompts' tokens. Shape ``[K]``.
        completions: Tokens of all completions of each group; together Q.
        prompts: Tokens of the prompt of each group; together K.
        longest_path: Tokens of the longest prompt + completion among these groups.
    """

    queries: Tensor
    keys: Tensor
    completions: Lengths
    prompts: Lengths
    longest_path: int

    def to(self, **options) -> "SharedPrompts":
        """The same indices on another device."""
        indices = (self.queries.to(**options), self.keys.to(**options))
        return SharedPrompts(*indices, self.completions.to(**options), self.prompts.to(**options), self.longest_path)


@dataclass(frozen=True)
class Segments:
    """The same attention without buckets: causal segments of varying length in flat order, and the shared prompts.

    Args:
        causal: A document, or a prompt with its only completion; of other groups the prompt and each completion.
        shared: ``None`` if no group has several completions after a prompt.
    """

    causal: Lengths
    shared: SharedPrompts | None

    def to(self, **options) -> "Segments":
        """The same segments on another device."""
        return Segments(self.causal.to(**options), self.shared and self.shared.to(**options))


@dataclass
class PackedLayout:
    """Attention of a flat sequence.

    Args:
        buckets: Together they contain every token exactly once as a query.
        restore: Index of each token of the flat sequence in the concatenated outputs of the buckets. Shape ``[T]``.
        longest_path: Tokens of the longest prompt + completion.
        segments: The same attention for kernels of varying length.
        windows: Sliding windows with which layers used this layout, recorded for ``scoring.verify``.
    """

    buckets: tuple[Bucket, ...]
    restore: Tensor
    longest_path: int
    segments: Segments
    windows: set[int | None] = field(default_factory=set, compare=False)

    def to(self, device, non_blocking: bool = False) -> "PackedLayout":
        """The same layout with its indices on another device."""
        options = {"device": device, "non_blocking": non_blocking}
        buckets = (
            Bucket(b.queries.to(**options), b.keys.to(**options), b.offset.to(**options), b.causal)
            for b in self.buckets
        )
        return PackedLayout(tuple(buckets), self.restore.to(**options), self.longest_path, self.segments.to(**options))


def packed_layout(groups: Iterable[Sequence[int]]) -> PackedLayout:
    """Build the attention layout of concatenated groups.

    Args:
        groups: For each group its lengths ``(prompt, completion, …)`` in tokens; any of them may be 0.

    Returns:
        The layout of ``T = sum of all lengths`` tokens.
    """
    segments = [segment for segment in _segments(groups) if segment[1] > 0]
    without_buckets = Segments(Lengths.of([segment[1] for segment in segments]), _shared_prompts(segments))
    # Plain causal segments first, then those that also attend to a prompt; within each the longest first.
    segments.sort(key=lambda segment: (segment[2] > 0, -segment[1] - segment[2], -segment[1], segment[0]))
    buckets, indices, base = [], {}, 0
    for group in _grouped(segments):
        width, depth = max(s[1] for s in group), max(s[1] + s[2] for s in group)
        for row, (start, length, _, _) in enumerate(group):
            indices[start] = (base + row * width, length)
        base += len(group) * width
        buckets.append(_bucket(group, width, depth))
    restore = _ranges((index, index + length) for _, (index, length) in sorted(indices.items()))
    longest = max((s[1] + s[2] for s in segments), default=0)
    return PackedLayout(tuple(buckets), restore, longest, without_buckets)


def positions(groups: Iterable[Sequence[int]]) -> Tensor:
    """Position ids of concatenated groups: each completion continues from its prompt. Shape ``[T]``."""
    return _ranges((before, before + length) for _, length, before, _ in _segments(groups))


def _ranges(bounds: Iterable[tuple[int, int]]) -> Tensor:
    """The integers from each start to before its end, one range after the other."""
    parts = [torch.arange(start, end) for start, end in bounds]
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


def _shared_prompts(segments: list[tuple[int, int, int, int]]) -> SharedPrompts | None:
    """Collect the segments with tokens before them, in flat order, by their prompt."""
    queries, keys, longest = [], [], 0
    for prompt_start, group in groupby((s for s in segments if s[2] > 0), key=lambda segment: segment[3]):
        completions = list(group)
        (start, _, prompt, _), (last, length, _, _) = completions[0], completions[-1]
        queries.append((start, last + length))
        keys.append((prompt_start, prompt_start + prompt))
        longest = max(longest, prompt + max(completion[1] for completion in completions))
    if not queries:
        return None
    blocks = (Lengths.of([end - start for start, end in bounds]) for bounds in (queries, keys))
    return SharedPrompts(_ranges(queries), _ranges(keys), *blocks, longest)


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
