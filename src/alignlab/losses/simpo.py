"""Simple preference optimisation (SimPO, arXiv 2405.14734): rewards are log-probabilities per token, with a margin."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignlab.losses.preference import Pairs


def simpo(
    pairs: Pairs,
    *,
    beta: float,
    margin: Annotated[float, Field(ge=0)],
    alpha: float,
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)],
) -> Tensor:
    """-log σ(β(u_c - u_r) - γ), u the log-probability per token (eq. 6).

    Args:
        pairs: P pairs; the reference is ignored.
        beta: Scale of the rewards.
        margin: γ, by which the reward of the chosen must exceed that of the rejected.
        alpha: Changes the reward to (1 - p^-α) / α (AlphaPO, arXiv 2501.03884, eq. 5); 0 gives SimPO.
        label_smoothing: Assumed share of wrong labels.

    Returns:
        Shape ``[P]``.
    """
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    if alpha != 0:
        chosen, rejected = (-torch.expm1(-alpha * logps) / alpha for logps in (chosen, rejected))
    logits = beta * (chosen - rejected) - margin
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
