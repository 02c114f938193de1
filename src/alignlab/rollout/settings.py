"""Settings of rollouts: sampling, rewards, and optimizer steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from alignlab.rewards.scorer import Limits
from alignlab.types.settings import Settings

Reward = Callable[..., Any]
"""``(completions, prompts, **columns)`` → a number or None for each completion."""

Count = Annotated[int, Field(ge=1)]
Coefficient = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(Settings):
    """Settings of sampling, rewards, and the optimizer steps of a rollout.

    Args:
        reward: Rewards by name; see ``rewards``.
        reward_weights: Weights of the rewards, in the same order; ``None`` for 1 each.
        reward_special_tokens: Names of the rewards that get completions with their special tokens.
        reward_limits: Limits of every reward; see ``rewards.scorer``.
        reward_kl_coef: Weight of the KL penalty in the reward.
        reward_kl_target: KL per completion to which the coefficient is adapted; ``None`` for a fixed coefficient.
        num_completions: G, the number of completions per prompt.
        num_iterations: Number of passes over the completions of a rollout.
        steps_per_rollout: Number of optimizer steps into which a rollout is split.
        group_filter: What to do with groups whose rewards are all equal: keep, drop, or sample other prompts instead.
        max_resample_rounds: Maximum number of further rounds of prompts, for ``resample``.
        truncated: What to do with completions that reach the maximum length: keep, mask (drop), or penalise.
        truncation_penalty: Subtracted from the reward of a truncated completion, for ``penalise``.
        right_reward: Lowest reward of a completion that counts as right, for metrics.
    """

    reward: dict[str, Reward]
    reward_weights: list[float] | None
    reward_special_tokens: list[str]
    reward_limits: Limits
    reward_kl_coef: Coefficient
    reward_kl_target: Annotated[float, Field(gt=0)] | None
    num_completions: Count
    num_iterations: Count
    steps_per_rollout: Count
    group_filter: Literal["keep", "drop", "resample"]
    max_resample_rounds: Annotated[int, Field(ge=0)]
    truncated: Literal["keep", "mask", "penalise"]
    truncation_penalty: Coefficient
    right_reward: float

    @property
    def for_reward(self) -> dict[str, Any]:
        """Arguments of ``collect.reward``."""
        penalty = self.truncation_penalty if self.truncated == "penalise" else None
        return {"with_special_tokens": self.reward_special_tokens, "truncation_penalty": penalty}
