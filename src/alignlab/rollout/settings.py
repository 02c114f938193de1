"""What is sampled, how it is rewarded, and how it becomes optimizer steps."""

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
    """What is sampled, how it is rewarded, and how a rollout becomes optimizer steps.

    Args:
        reward: Rewards by name; see ``rewards``.
        reward_weights: Weights of the rewards, in their order; ``None`` for 1 each.
        reward_limits: Of every reward: see ``rewards.scorer``.
        reward_kl_coef: Subtracted from the reward per nat of divergence from the reference.
        reward_kl_target: Divergence per completion that the coefficient is steered to; ``None`` leaves it fixed.
        num_completions: G, completions per prompt.
        num_iterations: Times that each completion is learned from.
        steps_per_rollout: Optimizer steps into which a rollout is cut.
        group_filter: What to do with groups whose rewards are all equal: keep, drop, or sample other prompts instead.
        max_resample_rounds: Further rounds of prompts at most, for ``resample``.
        truncated: What to do with completions cut at the limit: keep, leave out, or penalise.
        truncation_penalty: Subtracted from the reward of a cut completion, for ``penalise``.
        right_reward: Reward from which on a completion counts as right, in what is logged.
    """

    reward: dict[str, Reward]
    reward_weights: list[float] | None
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
