"""Published benchmarks by the lm-evaluation-harness (``pip install "alignlab[eval]"``)."""

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.errors import InputError, nearest
from alignlab.measures.estimates import Estimate, Z
from alignlab.measures.settings import TaskSettings


def refuse_unknown(settings: TaskSettings) -> None:
    """Refuse tasks that the harness does not have, before a model is opened.

    Raises:
        InputError: One is unknown, or the harness is not installed.
    """
    asked = f"tasks.names=[{','.join(settings.names)}]"
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(asked, "the lm-evaluation-harness is not installed", 'Type pip install "alignlab[eval]"')
    known = _manager(settings).all_tasks
    for name in settings.names:
        if name not in known:
            raise InputError(asked, f"the harness has no task {name!r}", nearest(name, known))


def run_tasks(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, limit: int | None
) -> dict[str, Estimate]:
    """Run tasks.

    Args:
        model: A language model in eval mode.
        tokenizer: Its tokenizer, with the chat template.
        settings: Which tasks, and how.
        limit: Maximum number of questions of each task; ``None`` for all.

    Returns:
        By ``TASK/METRIC``, or ``TASK/METRIC/FILTER`` where the harness filters answers, the mean over
        questions, with an interval from the harness' standard error.

    Raises:
        InputError: The data of a task cannot be read.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size, backend="causal")
    try:
        found = simple_evaluate(
            wrapped,
            tasks=settings.names,
            num_fewshot=settings.num_fewshot,
            limit=limit,
            apply_chat_template=settings.apply_chat_template,
            task_manager=_manager(settings),
            log_samples=False,
        )
    except (ConnectionError, FileNotFoundError) as error:
        why = f"their data cannot be read: {' '.join(str(error).split())[:200]}"
        instead = (
            "Connect to the hub once, which fills its cache, or name tasks over local files by tasks.include_path="
        )
        raise InputError(f"tasks.names=[{','.join(settings.names)}]", why, instead) from error
    sizes = found["n-samples"]
    return {
        f"{task}/{metric.removesuffix(',none').replace(',', '/')}": _estimate(
            values, metric, sizes.get(task, {}).get("effective", 0)
        )
        for task, values in found["results"].items()
        for metric in values
        if isinstance(values[metric], int | float) and "_stderr" not in metric and "," in metric
    }


def _manager(settings: TaskSettings) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=settings.include_path)


def _estimate(values: Mapping[str, Any], metric: str, num_rows: int) -> Estimate:
    name, _, kind = metric.partition(",")
    error = values.get(f"{name}_stderr,{kind}")
    half = Z * error if isinstance(error, int | float) else float("nan")
    return Estimate(float(values[metric]), values[metric] - half, values[metric] + half, num_rows)
