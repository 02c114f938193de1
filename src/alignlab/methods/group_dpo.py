"""Group DPO: one chosen completion against all rejected completions of its prompt.

    max(0, max over the rejected of r(y) - r(y_c) + α),   r(y) = β (log π(y|x) - log π_ref(y|x))

y_c is the chosen completion, and α the margin. The prompt and the chosen completion are computed once per group,
whatever the number of rejected completions; groups of different sizes can be in one batch. See ``losses.group`` for the
smooth maximum and other losses. The hinge loss is not from a paper.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from alignlab.losses.group import Groups, group_metrics, group_rewards, hardest_index
from alignlab.losses.logps import firsts, segment_sums, token_counts
from alignlab.methods.base import Factories, Method
from alignlab.methods.reference import ReferencePolicy, ReferenceSettings
from alignlab.models.scoring import token_scores
from alignlab.optim.rates import FROM_COMPARISONS
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm, Ratio
from alignlab.types.rows import Preference


class GroupDPO(Method):
    """Minimise a loss over groups of one chosen and K ≥ 1 rejected completions.

    Args:
        beta: Scale of the log-ratios; a larger one keeps the policy closer to the reference.
        loss: ``(groups)`` → one loss per group; see ``losses.group``.
        length_normalised: Whether to divide the reward of a completion by its number of tokens.
        weight_column: Numeric column with the weight of each row; ``None`` for 1 each.
        reference: Settings of the reference.
        factories: See ``Method``.
    """

    row_kind = Preference
    learning_rates = FROM_COMPARISONS
    number_columns = ("weight_column",)

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        loss: Callable[[Groups], Tensor],
        length_normalised: bool,
        weight_column: str | None,
        reference: ReferenceSettings,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.reference = ReferencePolicy(reference, factories.open_model)
        self.beta, self.loss, self.length_normalised = beta, loss, length_normalised
        self.weight_column = weight_column
        self.hardest_seen: dict[int, int] = {}

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The losses of all groups."""
        logps = segment_sums(token_scores(self.policy, batch).logps, batch.sequence_ids, batch.num_sequences)
        tokens = token_counts(batch.sequence_ids, batch.num_sequences, logps.dtype)
        reference = self.reference.logps(batch)
        rewards = group_rewards(logps, reference, tokens, beta=self.beta, length_normalised=self.length_normalised)
        groups = Groups(rewards, batch.group_ids, batch.columns.get("scores"))
        losses = self.loss(groups)
        metrics = group_metrics(groups, losses) | self._changes(batch, groups)
        term = LossTerm(losses, "groups")
        if self.weight_column is not None:
            term = term * batch.columns[self.weight_column][firsts(batch.group_ids)]
        return LossOutput([term], metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the index of the hardest rejected completion of each row."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hardest_seen"] = torch.tensor(list(self.hardest_seen.items()), dtype=torch.long).view(-1, 2)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also restore the indices of the hardest rejected completions."""
        super().on_load_checkpoint(checkpoint)
        self.hardest_seen = dict(checkpoint["hardest_seen"].tolist())

    def _changes(self, batch: MicroBatch, groups: Groups) -> dict[str, Ratio]:
        """Fraction of the rows seen before whose hardest rejected completion has changed."""
        if not self.training or "row" not in batch.columns:
            return {}
        rows = batch.columns["row"][firsts(batch.group_ids)].long().tolist()
        now = dict(zip(rows, hardest_index(groups).tolist(), strict=True))
        changes = [self.hardest_seen[row] != index for row, index in now.items() if row in self.hardest_seen]
        self.hardest_seen.update(now)
        ratio = torch.tensor([sum(changes), len(changes)], dtype=torch.float64, device=groups.rewards.device)
        return {"group/hardest_changed": Ratio(*ratio)}
