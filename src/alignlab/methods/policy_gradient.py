"""Shared by GRPO, RLOO and PPO: the inputs of their losses, and the scores computed before the first update."""

from collections.abc import Callable, Sequence

from torch import Tensor

from alignlab.losses.policy_gradient import PolicyTokens
from alignlab.methods.reference import ReferencePolicy
from alignlab.models.scoring import TokenScores
from alignlab.types.batch import MicroBatch


def policy_tokens(scores: TokenScores, batch: MicroBatch, advantages: Tensor, *, is_on_policy: bool) -> PolicyTokens:
    """Make the input of a policy loss: sampled tokens with their log-probs and advantages.

    Args:
        scores: Scores of the tokens under the policy, with entropies.
        batch: Rows of a rollout.
        advantages: Advantage of each token. Shape ``[N]``.
        is_on_policy: Whether the policy is the one that sampled, so that all ratios are 1.
    """
    columns = batch.token_columns
    old = None if is_on_policy else columns.get("old_logps", columns["sampled_logps"])
    return PolicyTokens(
        token_logps=scores.logps,
        advantages=advantages.to(scores.logps),
        sequence_ids=batch.sequence_ids,
        num_sequences=batch.num_sequences,
        old_token_logps=old,
        sampled_token_logps=columns["sampled_logps"] if "old_logps" in columns else None,
        entropies=scores.entropies,
    )


def score_tokens(
    names: Sequence[str], batch: MicroBatch, policy: Callable[[], TokenScores], reference: ReferencePolicy | None
) -> dict[str, Tensor]:
    """Compute old log-probs, reference log-probs and entropies, as needed. Each ``[N]``.

    Args:
        names: Names of the values: ``old_logps``, ``entropies``, ``reference_logps``. Other names are ignored.
        batch: Rows of a rollout.
        policy: Scores the batch under the policy; called only if needed.
        reference: Reference policy; ``None`` if ``reference_logps`` is not among the names.
    """
    found = {}
    if not {"old_logps", "entropies"}.isdisjoint(names):
        scores = policy()
        found = {"old_logps": scores.logps, "entropies": scores.entropies}
    if "reference_logps" in names:
        found["reference_logps"] = reference.token_logps(batch)
    return {name: found[name] for name in names if name in found}
