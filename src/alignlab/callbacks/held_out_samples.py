"""Evaluation by sampling: rewards and pass rates of completions of held-out prompts, with sampling settings of its own.

1. A prompt gets the same random numbers at every validation, whatever the number of ranks; the global random state is
   not used.
2. A completion passes if its final answer is right, or, with ``pass_reward``, if its weighted sum of rewards is high
   enough. Prompts without an answer, or with a completion that no reward scores, are left out of the pass rates.
"""

from collections.abc import Sequence
from typing import Annotated

import lightning
import torch
from pydantic import Field
from torch import Tensor

from alignlab.data.datamodule import DataModule
from alignlab.distributed.comm import num_ranks, rank
from alignlab.errors import InputError
from alignlab.measures.estimates import mean
from alignlab.measures.sampled import refuse_large_k, right_answers, sample_metrics
from alignlab.methods.base import Method
from alignlab.rewards.given import GivenReward
from alignlab.rollout.collect import draw_completions, gather_columns, prompt_generator, reward
from alignlab.rollout.completions import Completions
from alignlab.rollout.sampler.sampler import PolicySampler
from alignlab.types.rows import TokenRow

KEY = "callbacks.held_out_samples"

Count = Annotated[int, Field(ge=1)]


class HeldOutSamples(lightning.Callback):
    """Samples completions of held-out prompts at every validation, and logs what they are worth.

    With several validation sets it logs them of all prompts, and as ``val/SET/…`` of each set.

    It logs ``val/reward``, and if there are several rewards ``val/reward/NAME``, for methods with rewards, and
    ``val/pass@k`` and ``val/mean@k`` for each k. If there is nothing to log, nothing is sampled. Rewards that the data
    gives to its own completions say nothing of others; a method with one of them counts as one without rewards.

    Args:
        num_prompts: Maximum number of held-out prompts, of each validation set.
        num_completions: n, the number of completions per prompt.
        k: Numbers of completions for pass rates, each at most n.
        pass_reward: Lowest reward of a completion that passes; ``None``: a right final answer passes.
        sampler: Samples completions from the weights in training.

    Raises:
        InputError: A k is above n.
    """

    def __init__(
        self,
        *,
        num_prompts: Annotated[int, Field(ge=0)],
        num_completions: Count,
        k: list[Count],
        pass_reward: float | None,
        sampler: PolicySampler,
    ):
        refuse_large_k(k, num_completions, KEY)
        self.num_prompts, self.num_completions, self.k = num_prompts, num_completions, k
        self.pass_reward, self.sampler = pass_reward, sampler
        self.prompts: list[TokenRow] | None = None
        self.sets: list[str | None] = []  # the validation set of each prompt

    def setup(self, trainer: lightning.Trainer, method: Method, stage: str) -> None:
        """Check that the method has the rewards that ``pass_reward`` is about.

        Raises:
            InputError: It has none.
        """
        if self.pass_reward is not None and not _has_rewards(method):
            asked, why = f"{KEY}.pass_reward={self.pass_reward:g}", "this method has no rewards of sampled completions"
            raise InputError(asked, why, f"Type {KEY}.pass_reward=null: a right final answer then passes")

    def on_validation_epoch_end(self, trainer: lightning.Trainer, method: Method) -> None:
        """Sample completions of the prompts, divided among the ranks, and log their rewards and pass rates."""
        if method.head != "language_model" or not (self.k or _has_rewards(method)):
            return
        data: DataModule = trainer.datamodule
        if self.prompts is None:
            self.prompts = self._prompts(method, data)
        if not self.prompts:
            return
        own = range(rank(), len(self.prompts), num_ranks())
        prompts = [self.prompts[index] for index in own]
        generators = [prompt_generator(data.plan.seed, "held out", index) for index in own]
        drawn = draw_completions(self.sampler, method, data, prompts, generators, self.num_completions)
        columns = self._score(method, data, prompts, drawn)
        shape = len(self.prompts), self.num_completions
        positions = torch.arange(shape[0] * shape[1]).view(shape)[own.start :: own.step].flatten()
        columns = gather_columns(columns, positions, shape[0] * shape[1], method.device)
        for name in dict.fromkeys((None, *self.sets)):
            of_set = [name in (None, one) for one in self.sets]
            metrics = sample_metrics({key: values.view(shape)[of_set] for key, values in columns.items()}, self.k)
            prefix = "val/" if name is None else f"val/{name}/"
            method.log_dict({f"{prefix}{key}": mean(prompts) for key, prompts in metrics.items()})

    def _prompts(self, method: Method, data: DataModule) -> list[TokenRow]:
        """The prompts: any, if completions have rewards, and else those with an answer.

        Raises:
            InputError: Pass rates are asked for, and no prompt has an answer.
        """
        sets = data.validation_prompts(self.num_prompts, [] if _has_rewards(method) else ["answer"])
        self.sets = [name for name, rows in sets.items() for _ in rows]
        found = [row for rows in sets.values() for row in rows]
        by_answer = self.k and self.pass_reward is None
        if found and by_answer and not any("answer" in row.record["columns"] for row in found):
            why = "no held-out row has a column 'answer', by which a completion would pass"
            instead = f"Give rows that column, or type {KEY}.pass_reward=REWARD or {KEY}.k=[]"
            raise InputError(f"{KEY}.k={self.k}", why, instead)
        return found

    def _score(
        self, method: Method, data: DataModule, prompts: Sequence[TokenRow], drawn: Completions
    ) -> dict[str, Tensor]:
        """``reward`` and ``reward/NAME`` of this rank's completions, and ``passed``: 1, 0 or NaN. Each ``[S]``."""
        columns: dict[str, Tensor] = {}
        if _has_rewards(method):
            rollout, sizes = method.rollout, [self.num_completions] * len(prompts)
            columns = reward(rollout.scorer, data.tokenizer, prompts, sizes, drawn, **rollout.settings.for_reward)[0]
        if self.k and self.pass_reward is not None:
            total = columns["reward"]
            columns["passed"] = (total >= self.pass_reward).double().masked_fill(total.isnan(), torch.nan)
        elif self.k:
            texts = data.tokenizer.batch_decode(drawn.token_lists(), skip_special_tokens=True)
            columns["passed"] = right_answers(prompts, texts, self.num_completions).flatten()
        return columns


def _has_rewards(method: Method) -> bool:
    """Whether the method has rewards, and all of them can score any completion."""
    rewards = () if method.rollout is None else method.rollout.scorer.rewards.values()
    return bool(rewards) and not any(isinstance(reward, GivenReward) for reward in rewards)
