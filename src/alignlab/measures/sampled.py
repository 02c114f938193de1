"""What sampled completions of prompts are worth: rewards, and how often one of k passes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignlab.data.formats.messages import split_opened
from alignlab.errors import InputError
from alignlab.losses.pass_at_k import pass_rate
from alignlab.measures.estimates import of_several, share_of
from alignlab.rewards.exact_answer import exact_answer
from alignlab.types.loss import Ratio
from alignlab.types.rows import TokenRow


def refuse_large_k(k: Sequence[int], num_completions: int, key: str) -> None:
    """Refuse a k that is above the number of completions of a prompt.

    Args:
        k: Numbers of completions of which one should pass.
        num_completions: n.
        key: Key of the section of both in the config.

    Raises:
        InputError: One is.
    """
    if max(k, default=0) > num_completions:
        why = f"one of {max(k)} completions is looked for among {num_completions}"
        asked = f"{key}.k={list(k)} {key}.num_completions={num_completions}"
        raise InputError(asked, why, f"Type {key}.num_completions={max(k)}")


def right_answers(prompts: Sequence[TokenRow], texts: Sequence[str], num_completions: int) -> Tensor:
    """Whether completions give the right final answer: 1, 0, or NaN without a right one.

    Args:
        prompts: P rows with their records; the column ``answer`` is the right answer.
        texts: Completions without the answer that a prompt opens, in the order of the prompts. Length P·n.
        num_completions: n, the number of completions of each prompt.

    Returns:
        Shape ``[P, n]``, float64.
    """
    rows = [row for row in prompts for _ in range(num_completions)]
    right = [_is_right(row, text) for row, text in zip(rows, texts, strict=True)]
    return torch.tensor(right, dtype=torch.float64).view(len(prompts), num_completions)


def _is_right(prompt: TokenRow, text: str) -> float:
    answer = prompt.record["columns"].get("answer")
    opened = split_opened(prompt.record["prompt"])[1]
    return torch.nan if answer is None else float(exact_answer(opened + text, str(answer)))


def sample_metrics(columns: Mapping[str, Tensor], ks: Sequence[int]) -> dict[str, Ratio]:
    """Rewards and pass rates of completions, for each prompt; those that are not known are left out.

    Prompts with a completion of which it is not known whether it passes are left out of the pass rates.

    Args:
        columns: ``reward``, ``reward/NAME`` and ``passed`` (1, 0 or NaN), as far as they are known. Each ``[P, n]``.
        ks: Numbers of completions, each at most n.

    Returns:
        By metric, the sum over the completions of each prompt, and their number.
    """
    by_name = [name for name in columns if name.startswith("reward/")]
    rewards = [name for name in columns if name == "reward"] + (by_name if len(by_name) > 1 else [])
    metrics = {name: of_several(columns[name]) for name in rewards}
    passed = columns.get("passed", torch.zeros(0, 1, dtype=torch.float64))
    passed = passed[~passed.isnan().any(1)]
    for k in ks:
        metrics[f"pass@{k}"] = share_of(pass_rate(passed.sum(1), passed.shape[1], k))
        metrics[f"mean@{k}"] = share_of(passed[:, :k].mean(1))
    return {name: ratio for name, ratio in metrics.items() if ratio.weight.sum() > 0}
