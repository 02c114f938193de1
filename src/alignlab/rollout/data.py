"""A rollout is data: prompts, sampler, scorer of rewards and advantage function, put together as optimizer steps.

Prompts → G completions each → rewards → old log-probs and what else must be known → advantages → rows. Each rank
samples and scores its share of the prompts, and then has all of the rollout, so that advantages, batches and what is
logged do not depend on the number of ranks.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.data.datamodule import DataModule
from alignlab.data.tokenise.templates import choose_template, stop_tokens
from alignlab.distributed.comm import num_ranks, rank
from alignlab.errors import RunError
from alignlab.losses.advantages import reward_ranges
from alignlab.losses.kl import next_kl_coef
from alignlab.rewards.counts import FailureLimit
from alignlab.rewards.scorer import Scorer
from alignlab.rollout.collect import collect
from alignlab.rollout.learner import Learner
from alignlab.rollout.loader import LoaderSettings, NextPrompts, RolloutLoader, prompt_windows
from alignlab.rollout.metrics import rollout_metrics
from alignlab.rollout.rollout import Rollout
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.score import score_rows
from alignlab.rollout.settings import RolloutSettings
from alignlab.rollout.vllm.parity import measure
from alignlab.rollout.weight_sync import PolicySource
from alignlab.types.rows import TokenRow

log = logging.getLogger(__name__)

MAX_EMPTY_ROLLOUTS = 10
"""Rollouts in a row from which nothing can be learned."""


class RolloutData:
    """Optimizer steps made of what a policy samples.

    Args:
        settings: What is sampled, how it is rewarded, and how it becomes steps.
        sampler: Draws completions.
    """

    def __init__(self, settings: RolloutSettings, sampler: Sampler):
        self.settings, self.sampler = settings, sampler
        self.scorer = Scorer(settings.reward, settings.reward_weights, settings.reward_limits)
        self.failure_limit = FailureLimit(settings.reward_limits.max_failed_rollouts)
        self.reward_kl_coef = settings.reward_kl_coef
        self.log_dir = Path()
        self.latest: Rollout | None = None
        """The last rollout, with what was left out of it; for whoever shows samples."""

    # --- what a method asks -------------------------------------------------------------------------------------------

    @property
    def temperature(self) -> float:
        """Temperature of the sampling, at which the policy is scored too."""
        return self.sampler.temperature or 1.0

    @property
    def max_completion_tokens(self) -> int:
        """Most tokens of a completion."""
        return self.sampler.max_completion_tokens

    @property
    def is_on_policy(self) -> bool:
        """Whether the policy learns from every completion before its weights change."""
        return self.settings.num_iterations * self.settings.steps_per_rollout == 1

    def score_names(self, is_low_precision: bool) -> tuple[str, ...]:
        """Which log-probs must be computed before the first update.

        Args:
            is_low_precision: Whether the policy computes in 16 bits, where the sampler's own log-probs are not exact.
        """
        exact = self.sampler.is_exact and not is_low_precision
        return (() if exact else ("old_logps",)) + (("reference_logps",) if self.reward_kl_coef else ())

    def rewards(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rewards ``[S, R]``, their weights ``[R]``, and those of greedy completions ``[S, R]`` or None."""
        names = [name.removeprefix("reward/") for name in rollout.columns if name.startswith("reward/")]
        weights = torch.tensor([self.scorer.weights.get(name, 1.0) for name in names], dtype=torch.float64)
        side_by_side = [torch.stack([rollout.columns[f"reward/{name}"] for name in names], 1)]
        if all(f"greedy/{name}" in rollout.columns for name in names):
            side_by_side.append(torch.stack([rollout.columns[f"greedy/{name}"] for name in names], 1))
        return side_by_side[0], weights, side_by_side[1] if len(side_by_side) > 1 else None

    def token_kl(self, rollout: Rollout) -> Tensor:
        """k1 estimates of the divergence from the reference at each token; zeros without one. Shape ``[N]``."""
        columns = rollout.token_columns
        if "reference_logps" not in columns:
            return torch.zeros(len(rollout.sequence_ids), dtype=torch.float64)
        return columns.get("old_logps", columns["sampled_logps"]) - columns["reference_logps"]

    # --- steps --------------------------------------------------------------------------------------------------------

    def loader(self, data: DataModule, learner: Learner, num_steps: int) -> RolloutLoader:
        """Optimizer steps of this rank.

        Args:
            data: Gives prompts, tokenizer and limits.
            learner: Holds the policy.
            num_steps: Steps to yield in all.
        """
        settings = LoaderSettings(
            plan=data.plan,
            steps_per_rollout=self.settings.steps_per_rollout,
            num_iterations=self.settings.num_iterations,
            packing=data.load.packing,
            pad_token_id=data.tokenizer.pad_token_id or 0,
        )
        windows = prompt_windows(data, self.settings.steps_per_rollout)
        produce = partial(self.roll_out, data, learner)
        ranks = {"rank": rank(), "num_ranks": num_ranks()}
        return RolloutLoader(windows, produce, settings=settings, num_steps=num_steps, state=self, **ranks)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient, which may have been steered."""
        return {"reward_kl_coef": self.reward_kl_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.reward_kl_coef = state["reward_kl_coef"]

    def close(self) -> None:
        """End the processes of sampler and rewards."""
        self.sampler.close()
        self.scorer.close()

    def roll_out(
        self, data: DataModule, learner: Learner, number: int, next_prompts: NextPrompts
    ) -> tuple[list[TokenRow], dict[str, float]]:
        """Sample, reward, score, and make rows to learn from.

        Args:
            data: Gives tokenizer and limits.
            learner: Holds the policy.
            number: Of the rollout.
            next_prompts: Takes prompts.

        Returns:
            Rows, and what is logged; the same on all ranks.
        """
        stop = sorted(stop_tokens(data.tokenizer, choose_template(data.tokenizer, data.tokens.chat_template)))
        prompt = data.train[0].tokens
        source = PolicySource(learner, data.tokenizer, data.load.packing, prompt, stop, self.log_dir)
        metrics, clock = self.sampler.refresh(source), time.perf_counter()
        sample = partial(collect, self.settings, self.sampler, self.scorer, learner, data, stop)
        sampled, kept = self._gather(sample, number, next_prompts)
        self.latest = sampled
        scored = time.perf_counter()
        rollout = self._score(kept, data, learner)
        metrics |= self._compare(rollout)
        rollout = learner.advantages(rollout)
        metrics |= {"time/rollout": scored - clock, "time/scoring": time.perf_counter() - scored}
        metrics |= rollout_metrics(sampled, self.settings.right_reward) | rollout.metrics | self._steer(rollout)
        return rollout.rows(data.plan.max_tokens_per_micro_batch), metrics

    def _score(self, rollout: Rollout, data: DataModule, learner: Learner) -> Rollout:
        """Score it before the first update, where anything must be known."""
        if not learner.score_names:
            return rollout
        rows = rollout.rows(data.plan.max_tokens_per_micro_batch)
        layout = {"packing": data.load.packing, "pad_token_id": data.tokenizer.pad_token_id or 0}
        score = partial(learner.sharding.forward, learner.score)
        with learner.scoring_mode():
            return rollout.with_token_columns(**score_rows(rows, score, data.plan, **layout, device=learner.device))

    def _compare(self, rollout: Rollout) -> dict[str, float]:
        """How far the sampler's log-probs are from the trainer's; nothing where the trainer was not asked.

        Raises:
            ParityError: Farther than the sampler may be.
        """
        columns = rollout.token_columns
        if "old_logps" not in columns:
            return {}
        parity = measure(columns["sampled_logps"], columns["old_logps"])
        self.sampler.judge(parity)
        return {f"rollout/parity_{name}": value for name, value in vars(parity).items()}

    def _steer(self, rollout: Rollout) -> dict[str, float]:
        """Move the coefficient towards its target; returns what is logged."""
        if not self.reward_kl_coef:
            return {}
        used, kl = self.reward_kl_coef, self.token_kl(rollout).sum().item() / len(rollout)
        if self.settings.reward_kl_target is not None:
            self.reward_kl_coef = next_kl_coef(used, kl, target=self.settings.reward_kl_target, gain=0.1)
        return {"kl_per_completion": kl, "reward_kl_coef": used}

    # --- which completions to learn from ------------------------------------------------------------------------------

    def _gather(self, sample: Callable[..., Any], number: int, next_prompts: NextPrompts) -> tuple[Rollout, Rollout]:
        """All that was sampled, and what of it to learn from."""
        settings = self.settings
        for attempt in range(MAX_EMPTY_ROLLOUTS):
            sampled = self._sample_rewarded(sample, next_prompts, (number, attempt, 0))
            kept, wanted = self._filter(sampled), len(sampled.prompts)
            for again in range(settings.max_resample_rounds if settings.group_filter == "resample" else 0):
                num_groups = len(kept.prompt_index.unique())
                if num_groups >= wanted:
                    break
                take = partial(next_prompts, wanted - num_groups)
                more = self._sample_rewarded(sample, take, (number, attempt, again + 1))
                sampled, kept = sampled.joined(more), kept.joined(self._filter(more))
            if len(kept):
                return sampled, kept
            log.warning("rollout %d: nothing of %d groups is left to learn from; sampling others", number, wanted)
        raise RunError(
            f"method.group_filter={settings.group_filter} method.truncated={settings.truncated}",
            f"in {MAX_EMPTY_ROLLOUTS} rollouts in a row all rewards of a prompt were equal, or all completions cut",
            "Raise method.num_completions or rollout.max_completion_tokens, take easier prompts, or type "
            "method.group_filter=keep method.truncated=keep",
        )

    def _sample_rewarded(
        self, sample: Callable[..., Any], take: Callable[[], Sequence[TokenRow]], key: tuple[int, ...]
    ) -> Rollout:
        """Completions of prompts; of others where no reward scored any, until the limit ends the run."""
        for again in count():
            rollout, counts = sample(take(), (*key, again) if again else key)
            if self.failure_limit.is_scored(counts):
                break
        return rollout

    def _filter(self, rollout: Rollout) -> Rollout:
        """Leave out, where asked, cut completions and groups whose rewards are all equal."""
        if self.settings.truncated == "mask":
            rollout = rollout.keep(rollout.completions.finished)
        if self.settings.group_filter == "keep" or not len(rollout):
            return rollout
        ranges = reward_ranges(rollout.columns["reward"], rollout.group_ids)
        return rollout.keep((ranges > 0)[rollout.group_ids])
