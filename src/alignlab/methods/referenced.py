"""What methods share that hold the policy against a reference."""

import logging
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.losses.logps import sequence_sums
from alignlab.methods.base import Method
from alignlab.methods.precompute import add_reference_column
from alignlab.models.reference import MOVING, OWN, Reference, make_reference
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch, StepBatch

log = logging.getLogger(__name__)

IDENTITY_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Nats per token by which policy and reference may differ before the first step, by the policy's number format."""

COLUMN = "reference_logps"
"""Numeric column of rows whose reference log-probabilities were computed before training."""


class Referenced(Method):
    """A method with a reference policy.

    Args:
        reference: ``initial``, ``base``, ``ema``, ``synchronised``, ``none`` or the path of other weights.
        reference_decay: ``ema``: share of the old average that a step keeps.
        reference_every_n_steps: ``synchronised``: optimizer steps between two copies of the policy.
        precompute_reference: Score all rows once before training, keep the values, and free the reference.
        factories: See ``Method``.
    """

    def __init__(
        self,
        *,
        reference: str,
        reference_decay: Annotated[float, Field(ge=0, lt=1)],
        reference_every_n_steps: Annotated[int, Field(ge=1)],
        precompute_reference: bool,
        **factories,
    ):
        super().__init__(**factories)
        self.reference_word = reference
        self.reference_decay, self.reference_every_n_steps = reference_decay, reference_every_n_steps
        self.precompute_reference = precompute_reference
        self.reference: Reference | None = None

    def configure_model(self) -> None:
        """Build the policy and, while it is whole and untrained, its reference."""
        if self.policy is not None:
            return
        policy = self.factories.make_policy().train()
        self.make_beside(policy)
        self.policy = self.sharding.shard(policy)
        self.shard_beside()

    def make_beside(self, policy: nn.Module) -> None:
        """What stands beside the policy and begins as it does: its reference."""
        if self.reference_word != "none":
            self.reference = make_reference(policy, self.reference_word, self.factories.open_model)
            self.fingerprint = self.reference.fingerprint
            log.info("reference: %s, fingerprint %s", self.reference_word, self.fingerprint)

    def shard_beside(self) -> None:
        """Spread what stands beside the policy."""
        if self.reference is not None and self.reference.model is not None:
            self.sharding.shard_beside(self.reference.model)

    def on_fit_start(self) -> None:
        """Score the rows before training where asked, after which the reference has done its work."""
        super().on_fit_start()
        if self.precompute_reference and self.reference is not None:
            score = partial(self.sharding.forward, self.reference_logps)
            scorer = f"{self.fingerprint} {self.trainer.precision}"
            with self.as_in_training():
                add_reference_column(self.trainer.datamodule, COLUMN, scorer, score, self.device)
            self.reference = None

    def carries(self, name: str) -> bool:
        """A checkpoint must also carry a reference that moves."""
        return self.reference_word in MOVING and "reference" in name.split(".")

    temperature: float = 1.0
    """At which policy and reference are scored."""

    def reference_token_logps(self, batch: MicroBatch) -> Tensor:
        """Log-probabilities of the supervised tokens under the reference. Shape ``[N]``."""
        with self.reference.standing_in(self.policy) as model:
            score = partial(token_scores, temperature=self.temperature)
            return self.sharding.forward_beside(model, score, model, batch).logps

    def reference_logps(self, batch: MicroBatch) -> Tensor:
        """Log-probabilities of the completions under the reference; zeros where there is none. Shape ``[S]``."""
        if self.reference_word == "none":
            return torch.zeros(batch.num_sequences, device=batch.labels.device)
        if COLUMN in batch.columns:
            return batch.columns[COLUMN]
        return sequence_sums(self.reference_token_logps(batch), batch.sequence_ids, batch.num_sequences)

    def prepare_step(self, step: StepBatch) -> None:
        """Before the first step of all, the policy must be what it is held against."""
        if self.progress.step == 0 and self.training and self.reference_word != "none":
            self._check_identity(step.micro_batches[0])

    def finish_step(self) -> None:
        """Let a moving reference follow."""
        if self.reference_word == "ema":
            self.reference.move_towards(self.policy, 1 - self.reference_decay)
        if self.reference_word == "synchronised" and self.progress.step % self.reference_every_n_steps == 0:
            self.reference.move_towards(self.policy, 1.0)

    def _check_identity(self, batch: MicroBatch) -> None:
        difference = self.sharding.forward(self._mean_log_ratio, batch)
        log.info("log-ratio of policy and reference before the first step: %.3g nats per token", difference)
        if self.reference_word in OWN and self.reference_word != "base" and not difference <= self._tolerance():
            raise InputError(
                f"method.reference={self.reference_word}",
                f"before the first step policy and reference differ by {difference:.3g} nats per token, and must be "
                f"equal; the reference has the fingerprint {self.fingerprint}",
                "Type method.precompute_reference=false if its cached values are of other weights, or name the "
                "reference that is meant: method.reference=base or a path",
            )

    @torch.no_grad()
    def _mean_log_ratio(self, batch: MicroBatch) -> Tensor:
        """Mean over sequences of the absolute log-ratio per token, in eval mode. Shape ``[]``."""
        self.policy.eval()
        logps = token_scores(self.policy, batch, temperature=self.temperature).logps
        logps = sequence_sums(logps, batch.sequence_ids, batch.num_sequences)
        self.policy.train()
        tokens = torch.bincount(batch.sequence_ids, minlength=batch.num_sequences).clamp(min=1)
        return ((logps - self.reference_logps(batch)) / tokens).abs().mean()

    def _tolerance(self) -> float:
        return IDENTITY_TOLERANCE[torch.bfloat16 if self.is_low_precision else torch.float32]
