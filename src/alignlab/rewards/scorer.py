"""All rewards of a rollout, weighted, and what happens when one of them misbehaves.

Every reward runs in a thread of its own and gets so many seconds. One that raises, hangs, or returns something else
than one finite number per completion gives its default for these completions; it is counted and told, and stalls
nobody. A thread that hangs cannot be ended: it is left behind, and a reward that has left ``MAX_LEFT_BEHIND`` of them
is not called again.
"""

import logging
import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from alignlab.errors import InputError

log = logging.getLogger(__name__)

Reward = Callable[..., Sequence[float | None]]

MAX_LEFT_BEHIND = 5
MAX_TRACEBACK_LINES = 6


@dataclass(frozen=True)
class Scores:
    """What completions are worth.

    Args:
        total: Weighted sums; NaN where no reward has an opinion. Length S.
        by_name: Each reward, NaN where it has no opinion. Length S.
        failures: Per reward how many completions got its default, by what went wrong.
        failed: Of each completion how many rewards failed. Length S.
    """

    total: list[float]
    by_name: dict[str, list[float]]
    failures: dict[str, Counter[str]]
    failed: list[int]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reward is granted.

    Args:
        timeout_seconds: Of one call.
        num_retries: Further calls after one that raised.
        default: What a completion gets that could not be scored; None: no opinion.
    """

    timeout_seconds: Annotated[float, Field(gt=0)]
    num_retries: Annotated[int, Field(ge=0)]
    default: float | None


class Scorer:
    """Calls rewards and adds them up.

    Args:
        rewards: By name, each ``(completions, prompts, **columns)`` → one number per completion, or None.
        weights: In the same order; None for 1 each.
        limits: Of every reward.

    Raises:
        InputError: There are more or fewer weights than rewards, or no reward.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Sequence[float] | None, limits: Limits):
        weights = [1.0] * len(rewards) if weights is None else weights
        if len(weights) != len(rewards) or not rewards:
            why = f"there are {len(rewards)} rewards ({', '.join(rewards)}) and {len(weights)} weights"
            raise InputError(f"method.reward_weights={weights}", why, "Give one weight per reward, in their order")
        self.rewards, self.limits = dict(rewards), limits
        self.weights = dict(zip(rewards, weights, strict=True))
        self.left_behind: Counter[str] = Counter()

    def __call__(self, completions: Sequence[str], prompts: Sequence[Any], columns: Mapping[str, list]) -> Scores:
        """Score completions.

        Args:
            completions: S texts.
            prompts: Messages of each one's prompt. Length S.
            columns: Of the rows, each of length S.
        """
        calls = {
            name: _Call(reward, (list(completions), list(prompts)), columns, self.limits)
            for name, reward in self.rewards.items()
            if self.left_behind[name] < MAX_LEFT_BEHIND
        }
        deadline = time.monotonic() + self.limits.timeout_seconds * (1 + self.limits.num_retries)
        default = math.nan if self.limits.default is None else self.limits.default
        by_name, failures, failed = {}, {}, [0] * len(completions)
        for name in self.rewards:
            values, reason = self._result(name, calls.get(name), deadline, len(completions))
            by_name[name] = [default if value is None else value for value in values]
            failed = [count + (value is None) for count, value in zip(failed, values, strict=True)]
            if None in values:
                failures[name] = Counter({reason: values.count(None)})
        total = [self._sum(place, by_name) for place in range(len(completions))]
        return Scores(total, by_name, failures, failed)

    def to(self, device: Any) -> None:
        """Move rewards that compute on a device, which have a method ``to``, to that of the run."""
        for reward in self.rewards.values():
            if hasattr(reward, "to"):
                reward.to(device)

    def _result(self, name: str, call: "_Call | None", deadline: float, size: int) -> tuple[list[float | None], str]:
        """Values, None where the reward failed, and how it did if it did."""
        if call is None:
            return [None] * size, "not_called"
        call.thread.join(max(0.0, deadline - time.monotonic()))
        if call.thread.is_alive():
            self.left_behind[name] += 1
            log.warning("reward %s gave no answer within %g s", name, self.limits.timeout_seconds)
            return [None] * size, "timed_out"
        if call.error is not None:
            log.warning("reward %s failed: %s", name, call.error)
            return [None] * size, "failed"
        if not hasattr(call.values, "__len__") or len(call.values) != size:
            log.warning("reward %s gave %s for %d completions", name, _amount(call.values), size)
            return [None] * size, "wrong_length"
        values = [_number(value) for value in call.values]
        if None in values:
            log.warning("reward %s gave no finite number for %d of %d completions", name, values.count(None), size)
        return values, "not_finite"

    def _sum(self, place: int, by_name: Mapping[str, list[float]]) -> float:
        known = [
            self.weights[name] * values[place] for name, values in by_name.items() if not math.isnan(values[place])
        ]
        return sum(known) if known else math.nan


class _Call:
    """A reward in its thread; whatever it raises is kept, so that no thread prints."""

    def __init__(self, reward: Reward, arguments: tuple, columns: Mapping[str, list], limits: Limits):
        self.values: Any = None
        self.error: str | None = None
        self.thread = threading.Thread(target=self._run, args=(reward, arguments, columns, limits), daemon=True)
        self.thread.start()

    def _run(self, reward: Reward, arguments: tuple, columns: Mapping[str, list], limits: Limits) -> None:
        for _ in range(1 + limits.num_retries):
            try:
                self.values, self.error = reward(*arguments, **columns), None
                return
            except Exception:  # code of others: whatever it is, it is told and counted
                self.error = "\n".join(traceback.format_exc().splitlines()[-MAX_TRACEBACK_LINES:])


def _number(value: Any) -> float | None:
    """NaN for no opinion, None for what is no finite number."""
    if value is None:
        return math.nan
    try:
        number = math.nan if isinstance(value, str) else float(value)  # numbers of arrays and tensors too
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def _amount(values: Any) -> str:
    return f"{len(values)} numbers" if hasattr(values, "__len__") else f"a {type(values).__name__}"
