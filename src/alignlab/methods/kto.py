"""Kahneman-Tversky optimisation (KTO, arXiv 2402.01306): unpaired completions, each desirable or undesirable.

    λ_D (1 - σ(β (r - z_0)))  if desirable,   λ_U (1 - σ(β (z_0 - r)))  otherwise        (eq. 8)

r = log π(y|x) - log π_ref(y|x), and z_0 is an estimate of KL(π || π_ref).

1. The reference point z_0 is computed once per optimizer step, over all micro-batches and ranks, so that it does not
   depend on how the step is split. It pairs each prompt with the completion of the next row of the data (mismatched).
"""

from collections.abc import Callable
from typing import Annotated, Concatenate

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from alignlab.losses.kto import LogRatios, reference_point
from alignlab.losses.logps import segment_sums
from alignlab.methods.base import Factories, Method
from alignlab.methods.reference import ReferencePolicy, ReferenceSettings
from alignlab.models.scoring import token_scores
from alignlab.optim.rates import FROM_COMPARISONS
from alignlab.types.batch import MicroBatch, StepBatch
from alignlab.types.loss import LossOutput, LossTerm, Ratio
from alignlab.types.rows import Unpaired


class KTO(Method):
    """Minimise a weighted loss of unpaired completions.

    Args:
        beta: Scale of the log-ratios; a larger one keeps the policy closer to the reference.
        loss: ``(ratios, *, beta)`` → one loss per completion; see ``losses.kto``.
        desirable_weight: λ_D, weight of desirable completions.
        undesirable_weight: λ_U, weight of undesirable completions. For unbalanced data, choose the weights so that
            λ_D n_D / (λ_U n_U) is between 1 and 4/3 (section 4.2).
        weight_column: Numeric column with the weight of each row, in addition to λ; ``None`` for 1 each.
        reference: Settings of the reference.
        factories: See ``Method``.
    """

    row_kind = Unpaired
    learning_rates = FROM_COMPARISONS
    number_columns = ("weight_column",)
    needs_mismatched = True

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        loss: Callable[Concatenate[LogRatios, ...], Tensor],
        desirable_weight: Annotated[float, Field(ge=0)],
        undesirable_weight: Annotated[float, Field(ge=0)],
        weight_column: str | None,
        reference: ReferenceSettings,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.reference = ReferencePolicy(reference, factories.open_model)
        self.beta, self.loss = beta, loss
        self.weights, self.weight_column = (desirable_weight, undesirable_weight), weight_column
        self.point = torch.zeros(())

    @torch.no_grad()
    def prepare_step(self, step: StepBatch) -> None:
        """Compute the reference point z_0 of the step."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch, mismatched in zip(step.micro_batches, step.mismatched, strict=True):
            ratios = self.sharding.forward(self._log_ratios, mismatched)
            sums += batch.counted * torch.stack([ratios.sum().double(), ratios.new_tensor(len(ratios)).double()])
        if dist.is_initialized():
            dist.all_reduce(sums)
        self.point = reference_point(*sums)

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The weighted losses of all completions."""
        ratios = self._log_ratios(batch)
        desirable = batch.columns["desirable"].bool()
        losses = self.loss(LogRatios(ratios, desirable, self.point.to(ratios)), beta=self.beta)
        weighted = torch.where(desirable, *(losses * weight for weight in self.weights))
        term = LossTerm(weighted, "sequences")
        term = term if self.weight_column is None else term * batch.columns[self.weight_column]
        return LossOutput([term], self._metrics(ratios.detach(), desirable))

    def _log_ratios(self, batch: MicroBatch) -> Tensor:
        logps = segment_sums(token_scores(self.policy, batch).logps, batch.sequence_ids, batch.num_sequences)
        return logps - self.reference.logps(batch)

    def _metrics(self, ratios: Tensor, desirable: Tensor) -> dict[str, Ratio]:
        rewards, chosen = self.beta * ratios, desirable.to(ratios.dtype)
        return {
            "rewards/chosen": Ratio((rewards * chosen).sum(), chosen.sum()),
            "rewards/rejected": Ratio((rewards * (1 - chosen)).sum(), (1 - chosen).sum()),
            "kto/reference_point": Ratio(self.point * len(ratios), chosen.new_tensor(len(ratios))),
            "kto/desirable_fraction": Ratio(chosen.sum(), chosen.new_tensor(len(ratios))),
        }
