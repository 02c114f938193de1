"""Samplers that hold a copy of the policy: brought up to date before a rollout, compared after it, closed at the end.

Such a sampler has ``open``, ``update``, ``judge`` and ``close`` besides what every sampler has; see
``rollout.vllm.rollout``.
"""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor, nn

from alignlab.data.batching.collate import collate
from alignlab.errors import InputError
from alignlab.models.scoring import token_scores
from alignlab.rollout.groups import Rollout
from alignlab.rollout.vllm.parity import measure
from alignlab.rollout.weights import current_weights, first_weights
from alignlab.run_folder.metrics_file import MetricsFile
from alignlab.types.adapted import is_adapted
from alignlab.types.batch import MicroBatch, move
from alignlab.types.rows import TokenRow

if TYPE_CHECKING:
    from alignlab.methods.online import Online


def holds_copy(rollout: Any) -> bool:
    """Whether a sampler holds weights of its own."""
    return hasattr(rollout, "update")


def refresh(method: "Online") -> dict[str, float]:
    """Give a sampler's copy the policy's weights as they are now; all ranks call it.

    Returns:
        What is logged; nothing for a sampler without a copy.
    """
    if not holds_copy(method.rollout):
        return {}
    clock, policy, sharding = time.perf_counter(), method.policy, method.sharding
    if not method.rollout.is_open:
        first = first_weights(policy, sharding, method.data.tokenizer)
        probe = {"prompt": method.data.train[0].tokens, "stop_tokens": method.stop_tokens}
        where = {"lora_rank": _rank_of_adapter(policy), "log_dir": _run_folder(method.trainer)}
        method.rollout.open(first, **probe, **where)
    difference = method.rollout.update(current_weights(policy, sharding), partial(_logps, method))
    return {"time/weights": time.perf_counter() - clock, "rollout/arrival_difference": difference}


def parity_metrics(method: "Online", rollout: Rollout) -> dict[str, float]:
    """How far the log-probabilities that came with the samples are from the training forward's.

    Returns:
        What is logged; nothing where the training forward was not asked.

    Raises:
        ParityError: Farther than the sampler may be.
    """
    columns = rollout.token_columns
    if "old_logps" not in columns:
        return {}
    parity = measure(columns["sampled_logps"], columns["old_logps"])
    if holds_copy(method.rollout):
        method.rollout.judge(parity)
    return {f"rollout/parity_{name}": value for name, value in vars(parity).items()}


class Closing(lightning.Callback):
    """Closes a sampler when the run ends, however it does.

    Args:
        rollout: Samples.
    """

    def __init__(self, rollout: Any):
        self.rollout = rollout

    def on_exception(self, trainer: lightning.Trainer, method: Any, exception: BaseException) -> None:
        """On an error, Ctrl-C or SIGTERM."""
        self.rollout.close()

    def teardown(self, trainer: lightning.Trainer, method: Any, stage: str) -> None:
        """At the end."""
        self.rollout.close()


@torch.no_grad()
def _logps(method: "Online", prompt: list[int], completion: list[int]) -> list[float]:
    """Log-probabilities of a completion's tokens in the training forward, at temperature 1."""
    sizes = [len(prompt), len(completion)]
    row = TokenRow([*prompt, *completion], [False] * sizes[0] + [True] * sizes[1], [sizes], "the probe")
    batch = move(collate([row], method.data.load.packing, method.data.tokenizer.pad_token_id or 0), method.device)

    def score(batch: MicroBatch) -> Tensor:
        return token_scores(method.policy, batch).logps

    with method.as_in_training():
        return method.sharding.forward(score, batch).tolist()


def _rank_of_adapter(policy: nn.Module) -> int | None:
    """The largest rank of a LoRA; None without one."""
    if not is_adapted(policy):
        return None
    config = policy.active_peft_config
    if config.peft_type != "LORA" or config.use_dora:
        kind = "DoRA" if config.peft_type == "LORA" else config.peft_type.value
        why = f"the policy has a {kind} adapter, and vLLM serves LoRA alone"
        raise InputError("rollout=vllm", why, "Type rollout=hf, or merge the adapter first")
    return max([config.r, *(config.rank_pattern or {}).values()])


def _run_folder(trainer: lightning.Trainer) -> Path:
    """Where the run's table of metrics lies."""
    folders = [logger.path.parent for logger in trainer.loggers if isinstance(logger, MetricsFile)]
    return folders[0] if folders else Path(trainer.default_root_dir)
