"""All rewards of a batch of completions, weighted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scores:
    """What completions are worth.

    Args:
        total: Weighted sums; NaN where no reward has an opinion. Length S.
        by_name: Each reward, NaN where it has no opinion. Length S.
        failures: Per reward the number of completions that got its default, by what went wrong.
    """

    total: list[float]
    by_name: dict[str, list[float]]
    failures: dict[str, dict[str, int]]


class Scorer:
    """Calls rewards and adds them up.

    Args:
        rewards: By name, each ``(completions, prompts, **columns)`` → one number per completion, or None.
        weights: By the same order; None for 1 each.
    """

    def __init__(self, rewards: Mapping[str, Callable[..., Any]], weights: Sequence[float] | None):
        self.rewards = dict(rewards)
        self.weights = dict(zip(rewards, weights or [1.0] * len(rewards), strict=True))

    def __call__(self, completions: Sequence[str], prompts: Sequence[Any], columns: Mapping[str, list]) -> Scores:
        """Score completions with the columns of their rows."""
        by_name = {
            name: [math.nan if value is None else float(value) for value in reward(completions, prompts, **columns)]
            for name, reward in self.rewards.items()
        }
        total = [self._sum(place, by_name) for place in range(len(completions))]
        return Scores(total, by_name, {})

    def _sum(self, place: int, by_name: Mapping[str, list[float]]) -> float:
        known = [
            self.weights[name] * values[place] for name, values in by_name.items() if values[place] == values[place]
        ]
        return sum(known) if known else math.nan
