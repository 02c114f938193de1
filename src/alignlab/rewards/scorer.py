"""The weighted sum of all rewards of a rollout, and the handling of rewards that fail.

All rewards are called at the same time, each with a timeout. If a reward raises, hangs, dies, or does not return one
finite number per completion, these completions get its default; the failure is counted and logged, and the run goes on.
``rewards.execution`` describes where a reward runs and what happens to one that hangs.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from alignlab.errors import InputError, nearest, raise_all
from alignlab.rewards.answers import Answer, failed_answer
from alignlab.rewards.counts import RewardCounts
from alignlab.rewards.execution import InProcess, InThread, make_executor

log = logging.getLogger(__name__)

Reward = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class Scores:
    """Rewards of S completions.

    Args:
        total: Weighted sum of the rewards; NaN if no reward gives a number. Length S.
        by_name: Values of each reward, NaN where it gives none. Length S.
        failures: For each reward, the number of completions that got its default, by kind of failure.
        failed: Number of rewards that failed for each completion. Length S.
        counts: Counts of each reward.
    """

    total: list[float]
    by_name: dict[str, list[float]]
    failures: dict[str, Counter[str]]
    failed: list[int]
    counts: dict[str, RewardCounts]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of every reward.

    Args:
        timeout_seconds: Timeout of one call.
        num_retries: Number of retries after a call that raised.
        default: Value of a completion for which the reward failed; None leaves the reward out of its sum.
        max_failed_rollouts: Number of rollouts in a row after which a reward that fails for all completions ends the
            run; see ``counts``.
    """

    timeout_seconds: Annotated[float, Field(gt=0)]
    num_retries: Annotated[int, Field(ge=0)]
    default: Annotated[float, Field(allow_inf_nan=False)] | None
    max_failed_rollouts: Annotated[int, Field(ge=1)]


class Scorer:
    """Calls rewards and sums them.

    Args:
        rewards: Rewards by name, callables ``(completions, prompts, **columns)`` that return one number or None per
            completion.
        weights: Weights in the same order; None for 1 each.
        limits: Limits of every reward.

    Raises:
        InputError: The numbers of weights and rewards differ, there is no reward, or a reward refuses its arguments.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Sequence[float] | None, limits: Limits):
        weights = [1.0] * len(rewards) if weights is None else weights
        if len(weights) != len(rewards) or not rewards:
            why = f"there are {len(rewards)} rewards ({', '.join(rewards)}) and {len(weights)} weights"
            raise InputError(f"method.reward_weights={weights}", why, "Give one weight per reward, in their order")
        self.rewards, self.limits = dict(rewards), limits
        self.weights = dict(zip(rewards, weights, strict=True))
        self.executors = {name: make_executor(name, reward) for name, reward in self.rewards.items()}

    def __call__(
        self,
        completions: Sequence[str],
        prompts: Sequence[Any],
        columns: Mapping[str, list],
        other_texts: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> Scores:
        """Score completions.

        Args:
            completions: Texts of the completions. Length S.
            prompts: Messages of each completion's prompt. Length S.
            columns: Columns of the rows, each of length S.
            other_texts: For some rewards by name, texts that they get instead of ``completions``, each of length S.
        """
        answers = self._ask_all(
            {name: list(other_texts.get(name, completions)) for name in self.rewards}, list(prompts), columns
        )
        default = math.nan if self.limits.default is None else self.limits.default
        by_name, failures, failed = {}, {}, [0] * len(completions)
        for name, answer in answers.items():
            by_name[name] = [default if value is None else value for value in answer.values]
            failed = [count + (value is None) for count, value in zip(failed, answer.values, strict=True)]
            if answer.failure:
                failures[name] = Counter({answer.failure: answer.values.count(None)})
                log.warning("reward %s: %s: %s", name, answer.failure, answer.message)
        total = [self._sum(index, by_name) for index in range(len(completions))]
        counts = {name: RewardCounts.of(answer) for name, answer in answers.items()}
        return Scores(total, by_name, failures, failed, counts)

    def check_columns(self, names: Collection[str]) -> None:
        """Check that rows have the columns that rewards cannot do without.

        Args:
            names: Names of the columns of the rows.

        Raises:
            InputError: A column is missing; reports all together.
        """
        faults = []
        for name, executor in self.executors.items():
            for missing in sorted(executor.needs - {*names, "num_tokens"}):
                why = f"it needs a column {missing!r}, and the rows have {', '.join(sorted(names)) or 'none'}"
                faults.append(
                    InputError(f"method.reward.{name}", why, f"{nearest(missing, names)} Or correct the data")
                )
        raise_all(faults)

    def to(self, device: Any) -> None:
        """Move rewards that compute on a device, and so have a method ``to``, to the device of the run."""
        for reward in self.rewards.values():
            if hasattr(reward, "to"):
                reward.to(device)

    def close(self) -> None:
        """End the processes of rewards; a further call restarts them."""
        for executor in self.executors.values():
            executor.close()

    def _ask_all(self, texts: Mapping[str, list[str]], prompts: list, columns: Mapping[str, list]) -> dict[str, Answer]:
        """Call all rewards at the same time, each with its texts, and return the answer of each."""
        size, retries, seconds = len(prompts), self.limits.num_retries, self.limits.timeout_seconds
        faults = {name: executor.make_ready() for name, executor in self.executors.items()}  # not part of the timeout
        ready = [name for name, fault in faults.items() if not fault]
        calls = {name: _Call(self.executors[name], (texts[name], prompts, columns, retries)) for name in ready}
        deadline = time.monotonic() + seconds * (1 + retries)
        answers = {name: failed_answer(size, "not_called", fault) for name, fault in faults.items() if fault}
        for name, call in calls.items():
            call.thread.join(max(0.0, deadline - time.monotonic()))
            answers[name] = call.answer or failed_answer(size, "timed_out", f"it gave no answer within {seconds:g} s")
            if call.answer is None:
                self.executors[name].give_up()
        return {name: answers[name] for name in self.rewards}

    def _sum(self, index: int, by_name: Mapping[str, list[float]]) -> float:
        known = [
            self.weights[name] * values[index] for name, values in by_name.items() if not math.isnan(values[index])
        ]
        return sum(known) if known else math.nan


class _Call:
    """A call of a reward in a thread, so that it can be abandoned; every error becomes its answer."""

    def __init__(self, executor: InThread | InProcess, arguments: tuple):
        self.answer: Answer | None = None
        self.thread = threading.Thread(target=self._run, args=(executor, arguments), daemon=True)
        self.thread.start()

    def _run(self, executor: InThread | InProcess, arguments: tuple) -> None:
        try:
            self.answer = executor.ask(*arguments)
        except Exception as error:  # for example columns that cannot be sent to a process
            self.answer = failed_answer(len(arguments[0]), "failed", f"{type(error).__name__}: {error}")
