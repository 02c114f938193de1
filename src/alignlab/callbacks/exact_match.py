"""Evaluation by generation: the share of held-out prompts that the policy answers correctly."""

import logging
from typing import Annotated, NamedTuple

import lightning
import torch
from pydantic import Field

from alignlab.data.datamodule import DataModule
from alignlab.data.formats.messages import split_opened
from alignlab.distributed.comm import num_ranks
from alignlab.methods.base import Method
from alignlab.optim.reduction import RunningMeans
from alignlab.rewards.exact_answer import exact_answer
from alignlab.rollout.sampler.generate import complete
from alignlab.types.loss import LossOutput, Ratio

log = logging.getLogger(__name__)


class HeldOut(NamedTuple):
    """A held-out prompt, with the answer that it opens, the right one, and its validation set, if it has one."""

    validation_set: str | None
    tokens: list[int]
    prefix: str
    answer: str


class ExactMatch(lightning.Callback):
    """Logs ``val/exact_match`` after every validation, if held-out rows have an ``answer`` column.

    With several validation sets also ``val/SET/exact_match``.

    Args:
        num_prompts: Maximum number of held-out prompts to complete, of each validation set.
        max_completion_tokens: Maximum tokens of a completion.
        batch_size: Number of prompts completed at once.
    """

    def __init__(
        self,
        *,
        num_prompts: Annotated[int, Field(ge=0)],
        max_completion_tokens: Annotated[int, Field(ge=1)],
        batch_size: Annotated[int, Field(ge=1)],
    ):
        self.num_prompts = num_prompts
        self.max_completion_tokens = max_completion_tokens
        self.batch_size = batch_size
        self.prompts: list[HeldOut] | None = None

    def on_validation_epoch_end(self, trainer: lightning.Trainer, method: Method) -> None:
        """Complete the prompts greedily, divided among the ranks, and log the share of right answers."""
        if method.head != "language_model":
            return
        data: DataModule = trainer.datamodule
        if self.prompts is None:
            self.prompts = self._prompts(data)
        if not self.prompts:
            return
        share = self.prompts[trainer.global_rank :: num_ranks()]
        tokenizer = data.tokenizer
        with method.sharding.whole(method.policy):
            completions = complete(
                method.policy,
                [one.tokens for one in share],
                max_completion_tokens=self.max_completion_tokens,
                stop_tokens=data.stop_tokens,
                pad_token_id=tokenizer.pad_token_id,
                batch_size=self.batch_size,
            )
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        right = [exact_answer(one.prefix + text, one.answer) for text, one in zip(texts, share, strict=True)]
        shares = {}
        for name in dict.fromkeys((None, *(one.validation_set for one in self.prompts))):
            own = [x for x, one in zip(right, share, strict=True) if name in (None, one.validation_set)]
            metric = "exact_match" if name is None else f"{name}/exact_match"
            shares[metric] = Ratio(*torch.tensor([sum(own), len(own)], device=method.device, dtype=torch.float64))
        running = RunningMeans()
        running.add(LossOutput([], shares))
        for name, mean in running.means().items():
            method.log(f"val/{name}", mean.float())

    def _prompts(self, data: DataModule) -> list[HeldOut]:
        return [
            HeldOut(name, row.tokens, split_opened(row.record["prompt"])[1], str(row.record["columns"]["answer"]))
            for name, rows in data.validation_prompts(self.num_prompts, ["answer"]).items()
            for row in rows
        ]
