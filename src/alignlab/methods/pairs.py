"""Pairs of a micro-batch for methods without a reference, and what is logged of pairs."""

from torch import Tensor

from alignlab.losses.logps import pair_index, sequence_sums, token_counts
from alignlab.losses.preference import Pairs
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossTerm, Ratio


def free_pairs(token_logps: Tensor, batch: MicroBatch) -> Pairs:
    """Pairs of the completions, without a reference.

    Args:
        token_logps: Of the supervised tokens under the policy. Shape ``[N]``.
        batch: Trees of 1 + K completions.
    """
    index = pair_index(batch.group_ids)
    logps = sequence_sums(token_logps, batch.sequence_ids, batch.num_sequences)
    tokens = token_counts(batch.sequence_ids, batch.num_sequences, token_logps.dtype)
    chosen, rejected = logps[index.chosen], logps[index.rejected]
    none = chosen.new_zeros(len(chosen))
    return Pairs(chosen, rejected, none, none, tokens[index.chosen], tokens[index.rejected])


def pair_term(losses: Tensor | LossTerm) -> LossTerm:
    """What a loss of pairs returned, per pair unless it says otherwise.

    Args:
        losses: One per pair ``[P]``, or a term.
    """
    return losses if isinstance(losses, LossTerm) else LossTerm(losses, "pairs")


def pair_metrics(pairs: Pairs, beta: float) -> dict[str, Ratio]:
    """Rewards (β times the log-ratio) of both sides, their margin, how often it is positive, and log-probabilities."""
    chosen, rejected = (beta * ratio.detach() for ratio in (pairs.chosen_ratio, pairs.rejected_ratio))
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": pairs.chosen.detach(),
        "logps/rejected": pairs.rejected.detach(),
    }
    count = chosen.new_tensor(chosen.numel())
    return {name: Ratio(value.sum(), count) for name, value in values.items()}
