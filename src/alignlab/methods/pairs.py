"""Pairs of a micro-batch for methods without a reference, and metrics of pairs."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from alignlab.errors import InputError
from alignlab.losses.logps import pair_index, segment_sums, token_counts
from alignlab.losses.preference import SORTED, Pairs
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossTerm, Ratio


def reference_free_pairs(token_logps: Tensor, batch: MicroBatch) -> Pairs:
    """Make the pairs of a micro-batch, with zeros as reference log-probs.

    Args:
        token_logps: Log-probs of the supervised tokens under the policy, with gradient. Shape ``[N]``.
        batch: Groups of 1 + K completions, the chosen first.
    """
    index = pair_index(batch.group_ids)
    logps = segment_sums(token_logps, batch.sequence_ids, batch.num_sequences)
    tokens = token_counts(batch.sequence_ids, batch.num_sequences, token_logps.dtype)
    chosen, rejected = logps[index.chosen], logps[index.rejected]
    zeros = chosen.new_zeros(len(chosen))
    return Pairs(chosen, rejected, zeros, zeros, tokens[index.chosen], tokens[index.rejected])


def pair_term(losses: Tensor | LossTerm) -> LossTerm:
    """Turn the result of a preference loss into a ``LossTerm``, normalised per pair by default.

    Args:
        losses: One loss per pair ``[P]``, or a ``LossTerm``.
    """
    return losses if isinstance(losses, LossTerm) else LossTerm(losses, "pairs")


def weigh_pairs(terms: Sequence[LossTerm], batch: MicroBatch, column: str | None) -> list[LossTerm]:
    """Multiply the losses of pairs by the weights of their rows.

    Args:
        terms: Terms with one loss per pair.
        batch: Groups of 1 + K completions.
        column: Numeric column with the weights; None to leave the terms as they are.

    Raises:
        InputError: A term is a sum over pairs.
    """
    if column is None:
        return list(terms)
    weights = batch.columns[column][pair_index(batch.group_ids).rejected]
    return [term * weights for term in terms]


def refuse_sorted(asked: str, losses: Iterable[str], instead: str) -> None:
    """Refuse to weigh single pairs of losses that sort over pairs.

    Args:
        asked: The setting that weighs pairs, as typed.
        losses: Names of the losses.
        instead: What to type instead.

    Raises:
        InputError: One of the losses sorts over pairs.
    """
    if names := sorted({*losses} & {*SORTED}):
        why = f"{', '.join(names)} sorts over pairs, so its values cannot be weighted pair by pair"
        raise InputError(asked, why, f"Type {instead}, or another method/loss")


def pair_metrics(pairs: Pairs, beta: float) -> dict[str, Ratio]:
    """Rewards (β times the log-ratio) of chosen and rejected, margins, accuracy (margin above 0), and log-probs."""
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
