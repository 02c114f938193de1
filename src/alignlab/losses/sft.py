"""SFT losses: negative log-likelihood, and dynamic fine-tuning (DFT, Wu et al. 2025, arXiv 2508.05629)."""

from typing import Literal, NamedTuple

from torch import Tensor

from alignlab.losses.normaliser import normalise
from alignlab.types.loss import LossTerm, Ratio

Reduction = Literal["token", "sequence"]


class SupervisedTokens(NamedTuple):
    """Supervised tokens of a micro-batch.

    Args:
        logps: Log-probabilities under the policy, carry the gradient. Shape ``[N]``.
        sequence_ids: Sequence of each token, ascending. Shape ``[N]``.
        num_sequences: S.
    """

    logps: Tensor
    sequence_ids: Tensor
    num_sequences: int


def nll(tokens: SupervisedTokens, *, reduction: Reduction) -> LossTerm:
    """Negative log-likelihood of the supervised tokens.

    Args:
        tokens: N tokens.
        reduction: ``token``: mean over tokens; ``sequence``: mean over sequences of the means over their tokens.

    Returns:
        Token losses per supervised token of the step, or their means over sequences per sequence.
    """
    return normalise(-tokens.logps, tokens.sequence_ids, tokens.num_sequences, reduction)


def dft(tokens: SupervisedTokens, *, reduction: Reduction) -> LossTerm:
    """Dynamic fine-tuning: the loss of each token weighted by its probability, without gradient (eq. 9).

    Args and returns as in ``nll``.
    """
    losses = -tokens.logps.detach().exp() * tokens.logps
    return normalise(losses, tokens.sequence_ids, tokens.num_sequences, reduction)


def token_metrics(token_logps: Tensor, argmax_correct: Tensor) -> dict[str, Ratio]:
    """``nll`` and ``token_accuracy`` of the supervised tokens.

    Args:
        token_logps: Log-probabilities. Shape ``[N]``.
        argmax_correct: Whether each label is the most likely token. Shape ``[N]``, bool.
    """
    count = token_logps.detach().new_tensor(token_logps.numel())
    return {"nll": Ratio(-token_logps.detach().sum(), count), "token_accuracy": Ratio(argmax_correct.sum(), count)}
