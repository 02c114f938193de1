"""Completions of prompts, and their rewards."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from alignlab.assemble import Config
from alignlab.config.build import build, build_all
from alignlab.data.formats.conversions import convert
from alignlab.errors import InputError
from alignlab.evaluation.opened import Opened
from alignlab.rewards.given import GivenReward
from alignlab.rewards.scorer import Scorer
from alignlab.rollout.collect import prompt_generator, reward
from alignlab.rollout.completions import Completions
from alignlab.types.rows import Prompt, Row, TokenRow


class Drawn(NamedTuple):
    """Completions of prompts.

    Args:
        prompts: P rows.
        texts: Completions without special tokens, in the order of the prompts. Length P·n.
        completions: The same as tokens.
    """

    prompts: list[TokenRow]
    texts: list[str]
    completions: Completions

    def by_origin(self, values: Iterable[Any]) -> dict[str, Any]:
        """One value per prompt, by file and line of its row."""
        return {row.origin: value for row, value in zip(self.prompts, values, strict=True)}


def draw(config: Config, opened: Opened, prompts: list[TokenRow], num_completions: int, greedy: bool = False) -> Drawn:
    """Sample completions of prompts; the same for any batch size.

    Args:
        config: Config of the evaluation.
        opened: The model.
        prompts: P rows.
        num_completions: n, the number of completions of each prompt.
        greedy: Whether to take the most probable tokens instead.
    """
    drawn = build("rollout", config["rollout"])(
        opened.model,
        prompts,
        num_completions=num_completions,
        stop_tokens=opened.stops,
        tokenizer=opened.tokenizer,
        generator=[prompt_generator(config["seed"], "held out", index) for index in range(len(prompts))],
        greedy=greedy,
    )
    return Drawn(prompts, opened.tokenizer.batch_decode(drawn.token_lists(), skip_special_tokens=True), drawn)


Score = Callable[[Drawn], dict[str, torch.Tensor]]
"""Completions → ``reward`` and ``reward/NAME``. Each ``[P, n]``."""


def make_score(config: Config, opened: Opened, rows: Sequence[Row]) -> Score | None:
    """Build the rewards of the config; ``None`` without rewards.

    Args:
        config: Config of the evaluation.
        opened: The model whose completions are scored.
        rows: The rows, whose columns rewards get.

    Raises:
        InputError: A reward needs a column that the rows do not have, or scores only completions of the data.
    """
    node = config["method"]
    if not node["reward"]:
        return None
    limits = build("method.reward_limits", node["reward_limits"])
    rewards = build_all("method.reward", node["reward"])
    if any(isinstance(one, GivenReward) for one in rewards.values()):
        why = "it is what the data gives to its own completions, and says nothing of others"
        raise InputError("method/reward=given", why, "Choose another reward")
    scorer = Scorer(rewards, node["reward_weights"], limits)
    scorer.check_columns({name for row in rows for name in convert(row, Prompt).columns})
    scorer.to(opened.model.device)
    special = {"with_special_tokens": node["reward_special_tokens"], "truncation_penalty": None}
    ask = partial(reward, scorer, opened.tokenizer, **special)

    def score(drawn: Drawn) -> dict[str, torch.Tensor]:
        each = len(drawn.texts) // len(drawn.prompts)
        try:
            columns = ask(drawn.prompts, [each] * len(drawn.prompts), drawn.completions)[0]
        finally:
            scorer.close()
        return {name: values.view(len(drawn.prompts), each) for name, values in columns.items()}

    return score


def records(drawn: Drawn, columns: Mapping[str, torch.Tensor], how: str) -> list[dict[str, Any]]:
    """What is written of each completion.

    Args:
        drawn: The completions.
        columns: What they are worth. Each ``[P, n]``.
        how: How they were drawn.
    """
    rows = [row for row in drawn.prompts for _ in range(len(drawn.texts) // len(drawn.prompts))]
    flat = {key: values.flatten().tolist() for key, values in columns.items()}
    values = [{key: column[index] for key, column in flat.items()} for index in range(len(drawn.texts))]
    return [
        {"origin": row.origin, "prompt": row.record["prompt"], "completion": text, "drawn": how, **own}
        for row, text, own in zip(rows, drawn.texts, values, strict=True)
    ]
