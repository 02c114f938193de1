"""Group DPO: one chosen completion against all rejected ones of its prompt at once.

    max(0, max over the rejected of r(y) - r(y_c) + α),   r(y) = β (log π(y|x) - log π_ref(y|x))

Prompt and chosen completion go through the model once per group, however many rejected ones there are; groups of
different sizes share a batch. See ``losses.group`` for the maximum, its smooth form and other losses of groups.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from alignlab.losses.group import Groups, group_metrics, group_rewards, hardest_index
from alignlab.losses.logps import firsts, sequence_sums, token_counts
from alignlab.methods.base import Factories, Method
from alignlab.methods.reference import ReferencePolicy, ReferenceSettings
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm, Ratio
from alignlab.types.rows import Preference


class GroupDPO(Method):
    """Minimise a loss of groups.

    Args:
        beta: Strength of the pull towards the reference.
        loss: ``(groups)`` → one loss per group; see ``losses.group``.
        length_normalised: Rewards per token.
        reference: What the policy is compared with.
        factories: See ``Method``.
    """

    row_kind = Preference

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        loss: Callable[[Groups], Tensor],
        length_normalised: bool,
        reference: ReferenceSettings,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.reference = ReferencePolicy(reference, factories.open_model)
        self.beta, self.loss, self.length_normalised = beta, loss, length_normalised
        self.hardest_seen: dict[int, int] = {}

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Losses of all groups."""
        logps = sequence_sums(token_scores(self.policy, batch).logps, batch.sequence_ids, batch.num_sequences)
        tokens = token_counts(batch.sequence_ids, batch.num_sequences, logps.dtype)
        reference = self.reference.logps(batch)
        rewards = group_rewards(logps, reference, tokens, beta=self.beta, length_normalised=self.length_normalised)
        groups = Groups(rewards, batch.group_ids, batch.columns.get("scores"))
        losses = self.loss(groups)
        metrics = group_metrics(groups, losses) | self._changes(batch, groups)
        return LossOutput([LossTerm(losses, "groups")], metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep also which rejected completion was the hardest of each row."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hardest_seen"] = torch.tensor(list(self.hardest_seen.items()), dtype=torch.long).view(-1, 2)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(checkpoint)
        self.hardest_seen = dict(checkpoint["hardest_seen"].tolist())

    def _changes(self, batch: MicroBatch, groups: Groups) -> dict[str, Ratio]:
        """Share of the rows seen before whose hardest rejected completion is another one now."""
        if not self.training or "row" not in batch.columns:
            return {}
        rows = batch.columns["row"][firsts(batch.group_ids)].long().tolist()
        now = dict(zip(rows, hardest_index(groups).tolist(), strict=True))
        changes = [self.hardest_seen[row] != place for row, place in now.items() if row in self.hardest_seen]
        self.hardest_seen.update(now)
        pair = torch.tensor([sum(changes), len(changes)], dtype=torch.float64, device=groups.rewards.device)
        return {"group/hardest_changed": Ratio(*pair)}
