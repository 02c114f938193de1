"""Log-probabilities of completions from those of tokens, and pairs of completions from groups."""

from typing import NamedTuple

import torch
from torch import Tensor


class PairIndex(NamedTuple):
    """Indices of the two sequences of each pair.

    Args:
        chosen: The first sequence of the group, repeated for every other sequence of it. Shape ``[P]``.
        rejected: The other sequence. Shape ``[P]``.
    """

    chosen: Tensor
    rejected: Tensor


def segment_sums(values: Tensor, ids: Tensor, num_segments: int) -> Tensor:
    """Sum values by segment, such as those of tokens by sequence; carries the gradient.

    The order of the sum is fixed, so that a sum is the same to the last bit each time: on a GPU ``index_add`` adds in
    any order, and with a reference that equals the policy, log-ratios would be noise instead of zero.

    Args:
        values: Shape ``[N]``.
        ids: Segment of each value, ascending. Shape ``[N]``.
        num_segments: S.

    Returns:
        Shape ``[S]``; 0 for a segment without values.
    """
    return torch.segment_reduce(values, "sum", lengths=torch.bincount(ids, minlength=num_segments), unsafe=True)


def token_counts(sequence_ids: Tensor, num_sequences: int, dtype: torch.dtype) -> Tensor:
    """Number of supervised tokens of each sequence, at least 1.

    Args:
        sequence_ids: Sequence of each token, ascending. Shape ``[N]``.
        num_sequences: S.
        dtype: Of the counts.

    Returns:
        Shape ``[S]``.
    """
    return torch.bincount(sequence_ids, minlength=num_sequences).clamp(min=1).to(dtype)


def firsts(group_ids: Tensor) -> Tensor:
    """Whether a sequence is the first of its group.

    Args:
        group_ids: Group of each sequence, ascending. Shape ``[S]``.

    Returns:
        Shape ``[S]``, bool.
    """
    return torch.cat([group_ids.new_ones(min(1, len(group_ids)), dtype=torch.bool), group_ids[1:] != group_ids[:-1]])


def pair_index(group_ids: Tensor) -> PairIndex:
    """Pair the first sequence of each group with every other one of the group; K rejected give K pairs.

    Args:
        group_ids: Group of each sequence, ascending. Shape ``[S]``.
    """
    first = firsts(group_ids)
    indices = torch.arange(len(group_ids), device=group_ids.device)
    chosen = indices[first][first.cumsum(0) - 1]  # the first sequence of each sequence's group
    return PairIndex(chosen[~first], indices[~first])


def desensitised_sums(token_logps: Tensor, sequence_ids: Tensor, num_sequences: int, pairs: PairIndex, alpha: float):
    """Sums with weight ``alpha`` on tokens beyond the pair's shorter completion (LD-DPO, arXiv 2409.06411, eq. 11).

    Args:
        token_logps: Log-probabilities, in the order of the tokens of each sequence. Shape ``[N]``.
        sequence_ids: Sequence of each token, ascending. Shape ``[N]``.
        num_sequences: S.
        pairs: P pairs; a sequence may belong to several.
        alpha: In 0…1; 1 gives plain sums.

    Returns:
        Log-probabilities of the chosen and of the rejected of each pair. Shapes ``[P]``.
    """
    counts = torch.bincount(sequence_ids, minlength=num_sequences)
    # Running sums with a zero in front. Sums of a range are differences of large numbers, hence double precision.
    running = torch.cat([token_logps.new_zeros(1), token_logps]).double().cumsum(0)
    start = counts.cumsum(0) - counts
    shared = torch.minimum(counts[pairs.chosen], counts[pairs.rejected])

    def blend(sequence: Tensor) -> Tensor:
        begin, middle, end = start[sequence], start[sequence] + shared, start[sequence] + counts[sequence]
        blended = running[middle] - running[begin] + alpha * (running[end] - running[middle])
        return blended.to(token_logps.dtype)

    return blend(pairs.chosen), blend(pairs.rejected)
