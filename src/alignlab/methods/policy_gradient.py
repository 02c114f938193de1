"""What GRPO, RLOO and PPO share: sampled tokens as their losses take them, and scores from before the first update."""

from collections.abc import Callable, Sequence

from torch import Tensor

from alignlab.losses.policy_gradient import PolicyTokens
from alignlab.methods.reference import ReferencePolicy
from alignlab.models.scoring import TokenScores
from alignlab.types.batch import MicroBatch


def policy_tokens(
    scores: TokenScores, batch: MicroBatch, advantages: Tensor, *, is_learned_from_once: bool
) -> PolicyTokens:
    """Sampled tokens of a micro-batch with their log-probs under the policies that matter.

    Args:
        scores: Of the policy in training, with entropies.
        batch: Rows of a rollout.
        advantages: Of each token. Shape ``[N]``.
        is_learned_from_once: Whether the weights are those that sampled, so that all ratios are 1.
    """
    columns = batch.token_columns
    old = None if is_learned_from_once else columns.get("old_logps", columns["sampled_logps"])
    return PolicyTokens(
        token_logps=scores.logps,
        advantages=advantages.to(scores.logps),
        sequence_ids=batch.sequence_ids,
        num_sequences=batch.num_sequences,
        old_token_logps=old,
        sampled_token_logps=columns["sampled_logps"] if "old_logps" in columns else None,
        entropies=scores.entropies,
    )


def scores_before(
    names: Sequence[str], batch: MicroBatch, policy: Callable[[], TokenScores], reference: ReferencePolicy | None
) -> dict[str, Tensor]:
    """Some of: old and reference log-probs, entropies. Each ``[N]``.

    Args:
        names: ``old_logps``, ``entropies``, ``reference_logps``; others are left to the method.
        batch: Rows of a rollout.
        policy: Scores the batch with the policy; called where it is needed.
        reference: Scores it too; not needed for the first two.
    """
    found = {}
    if not {"old_logps", "entropies"}.isdisjoint(names):
        scores = policy()
        found = {"old_logps": scores.logps, "entropies": scores.entropies}
    if "reference_logps" in names:
        found["reference_logps"] = reference.token_logps(batch)
    return {name: found[name] for name in names if name in found}
