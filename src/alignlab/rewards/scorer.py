"""All rewards of a rollout, weighted, and what happens when one of them misbehaves.

Every reward is asked at the same time and gets so many seconds. One that raises, hangs, dies, or returns something else
than one finite number per completion gives its default for these completions; it is counted and told, and stalls
nobody. Where it runs, and what becomes of one that hangs, says ``rewards.places``.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from alignlab.errors import InputError
from alignlab.rewards.answers import Answer, nothing
from alignlab.rewards.execution import InProcess, InThread, place_for
from alignlab.rewards.tallies import Tally

log = logging.getLogger(__name__)

Reward = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class Scores:
    """What completions are worth.

    Args:
        total: Weighted sums; NaN where no reward has an opinion. Length S.
        by_name: Each reward, NaN where it has no opinion. Length S.
        failures: Per reward how many completions got its default, by what went wrong.
        failed: Of each completion how many rewards failed. Length S.
        tallies: How each reward did.
    """

    total: list[float]
    by_name: dict[str, list[float]]
    failures: dict[str, Counter[str]]
    failed: list[int]
    tallies: dict[str, Tally]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reward is granted.

    Args:
        timeout_seconds: Of one call.
        num_retries: Further calls after one that raised.
        default: What a completion gets that could not be scored; None: no opinion.
        max_failed_rollouts: Rollouts in a row in which a reward may fail for all completions; see ``tallies``.
    """

    timeout_seconds: Annotated[float, Field(gt=0)]
    num_retries: Annotated[int, Field(ge=0)]
    default: Annotated[float, Field(allow_inf_nan=False)] | None
    max_failed_rollouts: Annotated[int, Field(ge=1)]


class Scorer:
    """Calls rewards and adds them up.

    Args:
        rewards: By name, each ``(completions, prompts, **columns)`` → one number per completion, or None.
        weights: In the same order; None for 1 each.
        limits: Of every reward.

    Raises:
        InputError: There are more or fewer weights than rewards, or no reward; or one refuses what it was told.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Sequence[float] | None, limits: Limits):
        weights = [1.0] * len(rewards) if weights is None else weights
        if len(weights) != len(rewards) or not rewards:
            why = f"there are {len(rewards)} rewards ({', '.join(rewards)}) and {len(weights)} weights"
            raise InputError(f"method.reward_weights={weights}", why, "Give one weight per reward, in their order")
        self.rewards, self.limits = dict(rewards), limits
        self.weights = dict(zip(rewards, weights, strict=True))
        self.places = {name: place_for(name, reward) for name, reward in self.rewards.items()}

    def __call__(self, completions: Sequence[str], prompts: Sequence[Any], columns: Mapping[str, list]) -> Scores:
        """Score completions.

        Args:
            completions: S texts.
            prompts: Messages of each one's prompt. Length S.
            columns: Of the rows, each of length S.
        """
        answers = self._ask_all(list(completions), list(prompts), columns)
        default = math.nan if self.limits.default is None else self.limits.default
        by_name, failures, failed = {}, {}, [0] * len(completions)
        for name, answer in answers.items():
            by_name[name] = [default if value is None else value for value in answer.values]
            failed = [count + (value is None) for count, value in zip(failed, answer.values, strict=True)]
            if answer.failure:
                failures[name] = Counter({answer.failure: answer.values.count(None)})
                log.warning("reward %s: %s: %s", name, answer.failure, answer.told)
        total = [self._sum(place, by_name) for place in range(len(completions))]
        tallies = {name: Tally.of(answer) for name, answer in answers.items()}
        return Scores(total, by_name, failures, failed, tallies)

    def to(self, device: Any) -> None:
        """Move rewards that compute on a device, which have a method ``to``, to that of the run."""
        for reward in self.rewards.values():
            if hasattr(reward, "to"):
                reward.to(device)

    def close(self) -> None:
        """End the processes of rewards; a further call starts them anew."""
        for place in self.places.values():
            place.close()

    def _ask_all(self, *arguments: Any) -> dict[str, Answer]:
        """The answer of each reward, all asked at once."""
        size, retries, seconds = len(arguments[0]), self.limits.num_retries, self.limits.timeout_seconds
        faults = {name: place.make_ready() for name, place in self.places.items()}  # takes no time of the calls'
        calls = {name: _Call(self.places[name], (*arguments, retries)) for name, fault in faults.items() if not fault}
        deadline = time.monotonic() + seconds * (1 + retries)
        answers = {name: nothing(size, "not_called", fault) for name, fault in faults.items() if fault}
        for name, call in calls.items():
            call.thread.join(max(0.0, deadline - time.monotonic()))
            answers[name] = call.answer or nothing(size, "timed_out", f"it gave no answer within {seconds:g} s")
            if call.answer is None:
                self.places[name].give_up()
        return {name: answers[name] for name in self.rewards}

    def _sum(self, place: int, by_name: Mapping[str, list[float]]) -> float:
        known = [
            self.weights[name] * values[place] for name, values in by_name.items() if not math.isnan(values[place])
        ]
        return sum(known) if known else math.nan


class _Call:
    """A reward that is being asked, in a thread, so that it can be left; whatever goes wrong becomes its answer."""

    def __init__(self, place: InThread | InProcess, arguments: tuple):
        self.answer: Answer | None = None
        self.thread = threading.Thread(target=self._run, args=(place, arguments), daemon=True)
        self.thread.start()

    def _run(self, place: InThread | InProcess, arguments: tuple) -> None:
        try:
            self.answer = place.ask(*arguments)
        except Exception as error:  # columns that cannot be sent, and what else nobody thought of
            self.answer = nothing(len(arguments[0]), "failed", f"{type(error).__name__}: {error}")
