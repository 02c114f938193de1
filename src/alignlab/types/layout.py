"""The packed layout: groups concatenated into one sequence without padding, and the indices needed for attention.

A group is given by its lengths ``(prompt, completion, completion, …)``. Each completion attends to its prompt and to
itself, so a *path* (prompt + completion) attends exactly as a separate sequence would, while the prompt is computed
once. Position ids restart at every group, and every completion continues from its prompt's length.

A completion may have *branches*: its first branch continues the prompt, and each other one leaves that path earlier, at
its fork point, and attends to the tokens before it and to itself. Its position ids continue from the fork point.

Attention is computed in buckets of segments of similar length, padded within a bucket only. The keys of a bucket are
in path order, so query i of a row may attend to key j exactly when ``j <= offset + i``: a real query never attends to
the padding at the right end, which needs no separate mask.

Kernels for segments of varying length need no buckets: they take the flat sequence as it is, and the cumulative lengths
in ``Segments``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

# A segment joins a bucket if it has at least this share of the bucket's longest segment, or is at most so many tokens
# shorter: padding costs wasted products, another bucket costs another kernel call.
MIN_FILL = 0.8
MAX_SLACK_TOKENS = 16


Branches = Mapping[int, Sequence[Sequence[int]]]
"""By number of a completion, for completions with branches: ``(tokens before its fork point, length)`` of each. The
first has the whole prompt before it, and the lengths sum to that of the completion."""

Range = tuple[int, int]
"""The integers from the first to before the last."""


class Path(NamedTuple):
    """A completion, or one branch of it, with the tokens that it continues.

    Args:
        group: Number of the group.
        sequence: Number of the completion, over all groups.
        context: Flat positions of the tokens before it, in order.
        start: Flat position of its first token.
        length: Number of its tokens.
    """

    group: int
    sequence: int
    context: tuple[Range, ...]
    start: int
    length: int

    @property
    def before(self) -> int:
        """Number of tokens before it."""
        return sum(end - start for start, end in self.context)

    @property
    def source(self) -> int | None:
        """Flat position of the token that predicts its first token; ``None`` if there is none."""
        return self.context[-1][1] - 1 if self.context else None


def find_paths(groups: Iterable[Sequence[int]], branches: Branches | None = None) -> list[Path]:
    """List the completions of concatenated groups, with their branches one by one.

    Args:
        groups: For each group its lengths ``(prompt, completion, …)`` in tokens.
        branches: Those of completions that have several.
    """
    paths, start, sequence = [], 0, 0
    for group, (prompt, *completions) in enumerate(groups):
        completion = start + prompt
        for length in completions:
            branch = completion
            for fork, tokens in (branches or {}).get(sequence, ((prompt, length),)):
                shared = [(start, start + min(fork, prompt)), (completion, completion + fork - prompt)]
                paths.append(Path(group, sequence, _joined(shared), branch, tokens))
                branch += tokens
            completion += length
            sequence += 1
        start = completion
    return paths


def _joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Leave out empty ranges, and join adjacent ones."""
    joined: list[Range] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start and end > start:
            joined[-1] = (joined[-1][0], end)
        elif end > start:
            joined.append((start, end))
    return tuple(joined)


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
class BucketRows:
    """The rows of all buckets one after the other, and where each token is in them.

    Args:
        queries: Flat positions of the buckets' queries. Shape ``[Q]``.
        keys: Flat positions of the buckets' keys. Shape ``[K]``.
        own: Index in ``keys`` of each token among those of its own segment. Shape ``[T]``.
        repeated: Indices in ``keys`` of tokens that a segment continues. Shape ``[C]``.
    """

    queries: Tensor
    keys: Tensor
    own: Tensor
    repeated: Tensor

    def to(self, **options) -> "BucketRows":
        """The same indices on another device."""
        return BucketRows(*(index.to(**options) for index in (self.queries, self.keys, self.own, self.repeated)))


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
    """What the causal segments lack: in groups with several completions, these also attend to their whole prompt, and
    branches to what they continue.

    Adjacent completions with the same tokens before them are one block of queries. Blocks without keys are left out: a
    query without keys has no softmax.

    Args:
        queries: Flat positions of the completions' tokens. Shape ``[Q]``.
        keys: Flat positions of the tokens before each block. Shape ``[K]``.
        completions: Tokens of each block; together Q.
        prompts: Tokens before each block; together K.
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
        rows: Rows of all buckets.
        longest_path: Tokens of the longest prompt + completion.
        segments: The same attention for kernels of varying length.
        windows: Sliding windows with which layers used this layout, recorded for ``scoring.verify``.
    """

    buckets: tuple[Bucket, ...]
    restore: Tensor
    rows: BucketRows
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
        indices = (self.restore.to(**options), self.rows.to(**options))
        return PackedLayout(tuple(buckets), *indices, self.longest_path, self.segments.to(**options))


class _Segment(NamedTuple):
    """Adjacent queries that attend causally to themselves, and to all tokens of a context before them."""

    start: int
    length: int
    context: tuple[Range, ...] = ()

    @property
    def before(self) -> int:
        return sum(end - start for start, end in self.context)


def packed_layout(groups: Sequence[Sequence[int]], branches: Branches | None = None) -> PackedLayout:
    """Build the attention layout of concatenated groups.

    Args:
        groups: For each group its lengths ``(prompt, completion, …)`` in tokens; any of them may be 0.
        branches: Those of completions that have several.

    Returns:
        The layout of ``T = sum of all lengths`` tokens.
    """
    segments = [segment for segment in _segments(groups, branches) if segment.length > 0]
    without_buckets = Segments(Lengths.of([segment.length for segment in segments]), _shared_prompts(segments))
    # Plain causal segments first, then those with a context; within each the longest first.
    segments.sort(key=lambda s: (s.before > 0, -s.length - s.before, -s.length, s.start))
    buckets, of_queries, of_keys, repeated, num_queries, num_keys = [], {}, {}, [], 0, 0
    for group in _grouped(segments):
        width, depth = max(s.length for s in group), max(s.length + s.before for s in group)
        for segment in group:
            own = num_keys + segment.before
            of_queries[segment.start] = (num_queries, num_queries + segment.length)
            of_keys[segment.start] = (own, own + segment.length)
            repeated.append((num_keys, own))
            num_queries, num_keys = num_queries + width, num_keys + depth
        buckets.append(_bucket(group, width, depth))
    restore, own = (_concatenated(places[start] for start in sorted(places)) for places in (of_queries, of_keys))
    rows = BucketRows(
        torch.cat([torch.empty(0, dtype=torch.long), *(bucket.queries.flatten() for bucket in buckets)]),
        torch.cat([torch.empty(0, dtype=torch.long), *(bucket.keys.flatten() for bucket in buckets)]),
        own,
        _concatenated(repeated),
    )
    longest = max((s.length + s.before for s in segments), default=0)
    return PackedLayout(tuple(buckets), restore, rows, longest, without_buckets)


def positions(groups: Sequence[Sequence[int]], branches: Branches | None = None) -> Tensor:
    """Position ids of concatenated groups: each completion continues from its prompt or fork point. Shape ``[T]``."""
    return _concatenated((s.before, s.before + s.length) for s in _segments(groups, branches))


def _concatenated(ranges: Iterable[Range]) -> Tensor:
    """The integers of the ranges, one range after the other."""
    parts = [torch.arange(start, end) for start, end in ranges]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def _segments(groups: Sequence[Sequence[int]], branches: Branches | None) -> list[_Segment]:
    """Query segments in flat order. A prompt and its only completion, up to the end of its first branch, are one."""
    of_group: dict[int, list[Path]] = {}
    for path in find_paths(groups, branches):
        of_group.setdefault(path.group, []).append(path)
    segments, start = [], 0
    for number, (prompt, *completions) in enumerate(groups):
        paths = of_group.get(number, [])
        joined = paths.pop(0).length if len(completions) == 1 else 0
        segments.append(_Segment(start, prompt + joined))
        segments += [_Segment(path.start, path.length, path.context) for path in paths]
        start += prompt + sum(completions)
    return segments


def _shared_prompts(segments: Sequence[_Segment]) -> SharedPrompts | None:
    """Collect the segments with a context, in flat order; adjacent ones with the same context are one block."""
    queries, keys, prompts, longest = [], [], [], 0
    for context, group in groupby((s for s in segments if s.context), key=lambda segment: segment.context):
        block = list(group)
        queries.append((block[0].start, block[-1].start + block[-1].length))
        keys += context
        prompts.append(block[0].before)
        longest = max(longest, block[0].before + max(segment.length for segment in block))
    if not queries:
        return None
    completions = Lengths.of([end - start for start, end in queries])
    return SharedPrompts(_concatenated(queries), _concatenated(keys), completions, Lengths.of(prompts), longest)


def _grouped(segments: Sequence[_Segment]) -> Iterable[list[_Segment]]:
    """Cut the sorted segments into buckets."""
    group: list[_Segment] = []
    for segment in segments:
        if group and not _fits(segment, group[0]):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _fits(segment: _Segment, longest: _Segment) -> bool:
    if bool(segment.context) != bool(longest.context):
        return False
    path, longest_path = segment.length + segment.before, longest.length + longest.before
    close = path >= MIN_FILL * longest_path or longest_path - path <= MAX_SLACK_TOKENS
    return close and abs(segment.length - longest.length) <= max(MAX_SLACK_TOKENS, (1 - MIN_FILL) * longest.length)


def _bucket(group: Sequence[_Segment], width: int, depth: int) -> Bucket:
    queries = torch.zeros(len(group), width, dtype=torch.long)
    keys = torch.zeros(len(group), depth, dtype=torch.long)
    for row, segment in enumerate(group):
        own = torch.arange(segment.start, segment.start + segment.length)
        queries[row] = segment.start
        queries[row, : segment.length] = own
        keys[row] = segment.start
        keys[row, : segment.before] = _concatenated(segment.context)
        keys[row, segment.before : segment.before + segment.length] = own
    offset = torch.tensor([segment.before for segment in group])
    return Bucket(queries, keys, offset, causal=not offset.any())
