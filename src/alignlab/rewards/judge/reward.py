"""A judge as a reward."""

import logging
import math
from typing import Annotated

from pydantic import Field

from alignlab.errors import InputError
from alignlab.rewards.judge.rubric import dialogue, open_rubric
from alignlab.rewards.judge.settings import ChatSettings, open_client
from alignlab.rewards.judge.verdicts import Failure, read_score, summary

log = logging.getLogger(__name__)

KEY = "method.reward.judge"
SHARE_OF_TIME = 0.9
"""Part of the time of a call after which the judge is no longer asked, so that the scores so far are returned in it."""


class NoScore(RuntimeError):
    """The judge scored no completion."""


class JudgeReward:
    """The score that a language model gives to a completion, by a rubric.

    Args:
        chat: The judge, and how it is asked.
        rubric: Name of one of our rubrics, or path of a Jinja file with ``{{ completion }}``; it may have ``{{ prompt
            }}``, ``{{ lowest }}``, ``{{ highest }}``, and the names of columns of the rows.
        scale: The lowest and the highest score.
        call_seconds: Timeout of one call of this reward.

    Raises:
        InputError: The scale is empty, there is no such rubric, or the judge does not answer.
    """

    def __init__(
        self,
        *,
        chat: ChatSettings,
        rubric: str,
        scale: Annotated[list[float], Field(min_length=2, max_length=2)],
        call_seconds: Annotated[float, Field(gt=0)],
    ):
        self.lowest, self.highest = scale
        if not self.lowest < self.highest:
            why = "the first number is the lowest score, and the second the highest"
            raise InputError(f"{KEY}.scale={scale}", why, f"Type {KEY}.scale=[1,10]")
        self.seconds = SHARE_OF_TIME * call_seconds
        self.rubric = open_rubric(rubric, ["completion"], f"{KEY}.rubric")
        self.needs = set(self.rubric.variables - {"prompt", "completion", "lowest", "highest"})
        self.client = open_client(chat, KEY)

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """Return a score per completion: NaN where the judge gives none, None if the row has no value in a column.

        Raises:
            NoScore: The judge scored none of the completions.
        """
        scale = {"lowest": f"{self.lowest:g}", "highest": f"{self.highest:g}"}
        rows = [{name: columns[name][index] for name in self.needs} for index in range(len(completions))]
        texts = {
            index: self.rubric.render(scale, {"prompt": dialogue(prompt), "completion": completion, **row})
            for index, (completion, prompt, row) in enumerate(zip(completions, prompts, rows, strict=True))
            if None not in row.values()
        }
        verdicts = dict(zip(texts, self.client.ask([*texts.values()], self._read, self.seconds), strict=True))
        failures = [verdict for verdict in verdicts.values() if isinstance(verdict, Failure)]
        if failures and len(failures) == len(verdicts):
            raise NoScore(summary(failures, len(texts)))
        if failures:
            log.warning("judge: %s", summary(failures, len(texts)))
        scores = {index: math.nan if isinstance(one, Failure) else one for index, one in verdicts.items()}
        return [scores.get(index) for index in range(len(completions))]

    def _read(self, reply: str) -> float | Failure:
        return read_score(reply, self.lowest, self.highest)
