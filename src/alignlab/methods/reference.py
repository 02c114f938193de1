"""The reference policy of a method: its settings, its log-probs, and its updates if it is a moving reference."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from alignlab.distributed.strategies import Sharding
from alignlab.errors import InputError
from alignlab.losses.logps import segment_sums, token_counts
from alignlab.models.component import Component
from alignlab.models.reference import ADAPTER, MOVING, OWN, Reference, make_reference
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch, StepBatch
from alignlab.types.settings import Settings

log = logging.getLogger(__name__)

IDENTITY_TOLERANCE = {False: 1e-4, True: 2e-2}
"""Maximum difference of policy and reference before the first step, in nats per token; the key is low precision."""

COLUMN = "precomputed/reference_logps"
"""Numeric column of precomputed reference log-probs."""


@dataclass(frozen=True, kw_only=True)
class MovingReferenceSettings(Settings):
    """Settings of the reference policy of methods with a rollout.

    Args:
        reference: ``initial``, ``base``, ``ema``, ``synchronised``, ``none`` or the path of other weights; see
            ``models.reference``.
        reference_decay: Decay of the moving average per optimizer step, for ``ema``.
        reference_every_n_steps: Number of optimizer steps between copies of the policy, for ``synchronised``.
    """

    reference: str
    reference_decay: Annotated[float, Field(ge=0, lt=1)]
    reference_every_n_steps: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings(MovingReferenceSettings):
    """Settings of the reference policy of methods whose rows are known before training.

    Args:
        precompute_reference: Whether to score all rows once before training, cache the log-probs, and free the
            reference.
    """

    precompute_reference: bool


class ReferencePolicy(Component):
    """The reference policy, which gives log-probs.

    Args:
        settings: Settings of the reference.
        open_model: Loads weights from a path.
        temperature: Temperature of the log-probs of policy and reference.
    """

    adapter = ADAPTER

    def __init__(
        self, settings: MovingReferenceSettings, open_model: Callable[[str], nn.Module], temperature: float = 1.0
    ):
        super().__init__()
        self.settings, self.open_model, self.temperature = settings, open_model, temperature
        self.weights: Reference | None = None
        self.fingerprint, self.is_low_precision = "", False
        self._policy: tuple[nn.Module, Sharding] | None = None  # a tuple, so that it is not registered a second time

    @property
    def is_none(self) -> bool:
        """Whether there is no reference: its log-probs are zeros."""
        return self.settings.reference == "none"

    @property
    def changes(self) -> bool:
        """Whether its weights change during training, so that checkpoints must include them."""
        return self.settings.reference in MOVING

    def build(self, policy: nn.Module) -> None:
        """Make the reference from the initial policy, or load its weights from a path."""
        if not self.is_none:
            self.weights = make_reference(policy, self.settings.reference, self.open_model)
            self.fingerprint = self.weights.fingerprint
            log.info("reference: %s, fingerprint %s", self.settings.reference, self.fingerprint)

    def shard(self, policy: nn.Module, sharding: Sharding) -> None:
        """Shard the reference if it is a separate model."""
        self._policy = (policy, sharding)
        if self.weights is not None and self.weights.model is not None:
            sharding.shard_beside(self.weights.model)
        if not sharding.strategy.restore_checkpoint_after_setup:  # the averages must be there when it is restored
            self._average_in_float32()

    def token_logps(self, batch: MicroBatch) -> Tensor:
        """Log-probs of the supervised tokens; zeros without a reference. Shape ``[N]``."""
        if self.is_none:
            return torch.zeros(len(batch.labels), device=batch.labels.device)
        policy, sharding = self._policy
        with self.weights.scoring_model(policy) as model:
            score = partial(token_scores, temperature=self.temperature)
            return sharding.forward_beside(model, score, model, batch).logps

    def logps(self, batch: MicroBatch) -> Tensor:
        """Log-probs of the completions; zeros without a reference. Shape ``[S]``."""
        if COLUMN in batch.columns:
            return batch.columns[COLUMN]
        return segment_sums(self.token_logps(batch), batch.sequence_ids, batch.num_sequences)

    def before_fit(self, trainer: Any) -> None:
        """Store whether training is in low precision, which decides how much policy and reference may differ."""
        self.is_low_precision = trainer.lightning_module.is_low_precision
        self._average_in_float32()  # only now has DeepSpeed cast the weights, and would cast the averages before

    @property
    def precomputes(self) -> bool:
        """Whether log-probs of all rows are computed before training."""
        is_set = isinstance(self.settings, ReferenceSettings) and self.settings.precompute_reference
        return is_set and not self.is_none

    def before_step(self, step: StepBatch, num_steps_done: int) -> None:
        """Check before the first step of the run that policy and reference agree."""
        if num_steps_done > 0 or self.is_none:
            return
        policy, sharding = self._policy
        difference = float(sharding.forward(self._mean_log_ratio, policy, step.micro_batches[0]))
        log.info("log-ratio of policy and reference before the first step: %.3g nats per token", difference)
        kind, tolerance = self.settings.reference, IDENTITY_TOLERANCE[self.is_low_precision]
        if kind in OWN and kind != "base" and not difference <= tolerance:
            raise InputError(
                f"method.reference={kind}",
                f"before the first step policy and reference differ by {difference:.3g} nats per token, and should be "
                f"equal; the fingerprint of the reference is {self.fingerprint}",
                "Type method.precompute_reference=false if its cached values are of other weights, or name the "
                "reference that is meant: method.reference=base or a path",
            )

    def after_step(self, num_steps_done: int) -> None:
        """Update a moving reference."""
        kind, every = self.settings.reference, self.settings.reference_every_n_steps
        if kind == "ema":
            self.weights.move_towards(self._policy[0], 1 - self.settings.reference_decay)
        if kind == "synchronised" and num_steps_done % every == 0:
            self.weights.move_towards(self._policy[0], 1.0)

    def _average_in_float32(self) -> None:
        if self.settings.reference == "ema" and self.weights is not None:
            policy, sharding = self._policy
            self.weights.average_in_float32(policy, sharding.float32_copies)

    @torch.no_grad()
    def _mean_log_ratio(self, policy: nn.Module, batch: MicroBatch) -> Tensor:
        """Mean over sequences of the absolute log-ratio per token, in eval mode. Shape ``[]``."""
        policy.eval()
        token_logps = token_scores(policy, batch, temperature=self.temperature).logps
        policy.train()
        logps = segment_sums(token_logps, batch.sequence_ids, batch.num_sequences)
        tokens = token_counts(batch.sequence_ids, batch.num_sequences, logps.dtype)
        return ((logps - self.logps(batch)) / tokens).abs().mean()
