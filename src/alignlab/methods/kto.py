"""Kahneman–Tversky optimisation (KTO, arXiv 2402.01306): completions that come alone, each desirable or not.

1. The reference point z_0 is one number for the whole optimizer step, over all micro-batches and ranks, so that it does
   not depend on how the step is cut. Each prompt is mismatched with the completion of the next row of the data.
"""

from collections.abc import Callable
from typing import Annotated, Concatenate

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from alignlab.losses.kto import LogRatios, reference_point
from alignlab.losses.logps import sequence_sums
from alignlab.methods.base import Factories, Method
from alignlab.methods.reference import ReferencePolicy, ReferenceSettings
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch, StepBatch
from alignlab.types.loss import LossOutput, LossTerm, Ratio
from alignlab.types.rows import Unpaired


class KTO(Method):
    """Minimise a loss of single completions.

    Args:
        beta: Strength of the pull towards the reference.
        loss: ``(ratios, *, beta)`` → one loss per completion; see ``losses.kto``.
        desirable_weight: λ_D.
        undesirable_weight: λ_U; λ_D n_D / λ_U n_U between 1 and 4/3 suits unbalanced data (section 4.2).
        reference: What the policy is compared with.
        factories: See ``Method``.
    """

    row_kind = Unpaired
    wants_companions = True

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        loss: Callable[Concatenate[LogRatios, ...], Tensor],
        desirable_weight: Annotated[float, Field(ge=0)],
        undesirable_weight: Annotated[float, Field(ge=0)],
        reference: ReferenceSettings,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.reference = ReferencePolicy(reference, factories.open_model)
        self.beta, self.loss = beta, loss
        self.weights = (desirable_weight, undesirable_weight)
        self.point = torch.zeros(())

    @torch.no_grad()
    def prepare_step(self, step: StepBatch) -> None:
        """Settle the reference point of the step."""
        table = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch, companion in zip(step.micro_batches, step.companions, strict=True):
            ratios = self.sharding.forward(self._log_ratios, companion)
            table += batch.counted * torch.stack([ratios.sum().double(), ratios.new_tensor(len(ratios)).double()])
        if dist.is_initialized():
            dist.all_reduce(table)
        self.point = reference_point(*table)

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Weighted losses of all completions."""
        ratios = self._log_ratios(batch)
        desirable = batch.columns["desirable"].bool()
        losses = self.loss(LogRatios(ratios, desirable, self.point.to(ratios)), beta=self.beta)
        weighted = torch.where(desirable, *(losses * weight for weight in self.weights))
        return LossOutput([LossTerm(weighted, "sequences")], self._metrics(ratios.detach(), desirable))

    def _log_ratios(self, batch: MicroBatch) -> Tensor:
        logps = sequence_sums(token_scores(self.policy, batch).logps, batch.sequence_ids, batch.num_sequences)
        return logps - self.reference.logps(batch)

    def _metrics(self, ratios: Tensor, desirable: Tensor) -> dict[str, Ratio]:
        rewards, kept = self.beta * ratios, desirable.to(ratios.dtype)
        return {
            "rewards/chosen": Ratio((rewards * kept).sum(), kept.sum()),
            "rewards/rejected": Ratio((rewards * (1 - kept)).sum(), (1 - kept).sum()),
            "kto/reference_point": Ratio(self.point * len(ratios), kept.new_tensor(len(ratios))),
            "kto/desirable_fraction": Ratio(kept.sum(), kept.new_tensor(len(ratios))),
        }
