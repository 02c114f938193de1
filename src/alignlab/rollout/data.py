"""Training data of methods with a rollout: sample completions, score them, and make optimizer steps of them.

Prompts → G completions each → rewards → old and reference log-probs, values, entropies → advantages → rows. The ranks
share the sampling and scoring, and then all ranks have the whole rollout. Advantages, batches and metrics therefore do
not depend on the number of ranks.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.distributed.comm import num_ranks, rank
from alignlab.errors import InputError, RunError, nearest
from alignlab.losses.advantages import flat_groups
from alignlab.losses.kl import next_kl_coef
from alignlab.rewards.counts import FailureLimit
from alignlab.rewards.given import GivenReward
from alignlab.rewards.scorer import Scorer
from alignlab.rollout.collect import collect
from alignlab.rollout.learner import Learner
from alignlab.rollout.loader import LoaderSettings, NextPrompts, RolloutLoader
from alignlab.rollout.metrics import rollout_metrics
from alignlab.rollout.rollout import Rollout
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.sampler.given import GivenCompletions
from alignlab.rollout.score import score_rows
from alignlab.rollout.settings import RolloutSettings
from alignlab.rollout.vllm.parity import measure
from alignlab.rollout.weight_sync import PolicySource
from alignlab.types.rows import TokenRow

if TYPE_CHECKING:
    from alignlab.data.datamodule import DataModule

log = logging.getLogger(__name__)

ROWS_TO_CHECK = 2000
"""Number of rows in which a column must occur that a reward needs."""

MAX_EMPTY_ROLLOUTS = 10
"""Number of rollouts in a row without rows to train on that ends the run."""

NUM_FLAT_ROLLOUTS = 5
"""Number of rollouts in a row with equal rewards of each prompt's completions, after which a warning says so."""


class RolloutData:
    """Makes optimizer steps of completions that the policy samples.

    Args:
        settings: Settings of sampling, rewards and steps.
        sampler: Samples completions.

    Raises:
        InputError: ``reward_special_tokens`` names no reward, or a reward that the data gives meets samples.
    """

    def __init__(self, settings: RolloutSettings, sampler: Sampler):
        self.settings, self.sampler = settings, sampler
        for name in settings.reward_special_tokens:
            if name not in settings.reward:
                asked = f"method.reward_special_tokens={settings.reward_special_tokens}"
                raise InputError(asked, f"there is no reward {name!r}", nearest(name, settings.reward))
        for name, one in settings.reward.items():
            if isinstance(one, GivenReward) and not isinstance(sampler, GivenCompletions):
                why = "the data gives it to completions of its own, and others are sampled"
                raise InputError(f"method.reward.{name}", why, "Type rollout=data, or choose another method/reward")
        self.scorer = Scorer(settings.reward, settings.reward_weights, settings.reward_limits)
        self.failure_limit = FailureLimit(settings.reward_limits.max_failed_rollouts)
        self.reward_kl_coef = settings.reward_kl_coef
        self.num_flat = 0
        self.log_dir = Path()
        self.latest: Rollout | None = None
        """The last rollout, before filtering; for callbacks that show samples."""

    def check_columns(self, data: "DataModule") -> None:
        """Check that the first training rows have the columns that the rewards cannot do without, and ask the sampler.

        Raises:
            InputError: A column is missing, or the sampler cannot complete a row.
        """
        if data.train is not None:
            rows = islice(data.train, ROWS_TO_CHECK)
            self.scorer.check_columns({name for row in rows for name in row.record["columns"]})
            self.sampler.check(data.train, data.tokenizer)

    # --- used by methods ----------------------------------------------------------------------------------------------

    @property
    def temperature(self) -> float:
        """Sampling temperature, which is also the temperature of log-probs in training."""
        return self.sampler.temperature or 1.0

    @property
    def max_completion_tokens(self) -> int:
        """Maximum number of tokens of a completion."""
        return self.sampler.max_completion_tokens

    @property
    def is_on_policy(self) -> bool:
        """Whether there is one update per rollout, so that the policy in training is the one that sampled."""
        return self.settings.num_iterations * self.settings.steps_per_rollout == 1

    def score_names(self, is_low_precision: bool) -> tuple[str, ...]:
        """Names of the log-probs that must be computed before the first update.

        Args:
            is_low_precision: Whether the policy computes in 16 bits, so that the sampler's log-probs are not exact.
        """
        exact = self.sampler.is_exact and not is_low_precision
        return (() if exact else ("old_logps",)) + (("reference_logps",) if self.reward_kl_coef else ())

    def rewards(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rewards ``[S, R]``, their weights ``[R]``, and rewards of the greedy completions ``[S, R]`` or None."""
        names = [name.removeprefix("reward/") for name in rollout.columns if name.startswith("reward/")]
        weights = torch.tensor([self.scorer.weights.get(name, 1.0) for name in names], dtype=torch.float64)
        rewards, greedy = torch.stack([rollout.columns[f"reward/{name}"] for name in names], 1), None
        if all(f"greedy/{name}" in rollout.columns for name in names):
            greedy = torch.stack([rollout.columns[f"greedy/{name}"] for name in names], 1)
        return rewards, weights, greedy

    def token_kl(self, rollout: Rollout) -> Tensor:
        """k1 estimate of the KL to the reference at each token; zeros without a reference. Shape ``[N]``."""
        columns = rollout.token_columns
        if "reference_logps" not in columns:
            return torch.zeros(len(rollout.sequence_ids), dtype=torch.float64)
        return columns.get("old_logps", columns["sampled_logps"]) - columns["reference_logps"]

    # --- steps --------------------------------------------------------------------------------------------------------

    def loader(self, data: "DataModule", learner: Learner, num_steps: int) -> RolloutLoader:
        """Make the loader of this rank's optimizer steps.

        Args:
            data: Data module, for prompts, tokenizer and limits.
            learner: The method, which has the policy.
            num_steps: Total number of steps.
        """
        settings = LoaderSettings(
            plan=data.plan,
            steps_per_rollout=self.settings.steps_per_rollout,
            num_iterations=self.settings.num_iterations,
            packing=data.load.packing,
            pad_token_id=data.tokenizer.pad_token_id or 0,
        )
        windows = partial(data.window, num_steps=self.settings.steps_per_rollout)
        produce = partial(self.roll_out, data, learner)
        ranks = {"rank": rank(), "num_ranks": num_ranks()}
        return RolloutLoader(windows, produce, settings=settings, num_steps=num_steps, state=self, **ranks)

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints: the current KL coefficient."""
        return {"reward_kl_coef": self.reward_kl_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.reward_kl_coef = state["reward_kl_coef"]

    def close(self) -> None:
        """Stop the processes of the sampler and the rewards."""
        self.sampler.close()
        self.scorer.close()

    def roll_out(
        self, data: "DataModule", learner: Learner, number: int, next_prompts: NextPrompts
    ) -> tuple[list[TokenRow], dict[str, float]]:
        """Sample completions, score them, compute advantages, and make rows.

        Args:
            data: Data module, for tokenizer and limits.
            learner: The method, which has the policy.
            number: Number of the rollout.
            next_prompts: Gives the next prompts.

        Returns:
            Rows, and metrics to log; the same on all ranks.
        """
        prompt = data.train[0].tokens
        source = PolicySource(learner, data.tokenizer, data.load.packing, prompt, data.stop_tokens, self.log_dir)
        metrics, started = self.sampler.refresh(source), time.perf_counter()
        sample = partial(collect, self.settings, self.sampler, self.scorer, learner, data)
        sampled, kept = self._gather(sample, number, next_prompts)
        self.latest = sampled
        sampling_ended = time.perf_counter()
        rollout = self._score(kept, data, learner)
        metrics |= self._compare(rollout)
        rollout = learner.advantages(rollout)
        metrics |= {"time/rollout": sampling_ended - started, "time/scoring": time.perf_counter() - sampling_ended}
        metrics |= rollout_metrics(sampled, self.settings.right_reward) | rollout.metrics | self._adapt_kl_coef(rollout)
        self._warn_of_equal_rewards(metrics["zero_std_groups"])
        return rollout.rows(data.plan.max_tokens_per_micro_batch), metrics

    def _score(self, rollout: Rollout, data: "DataModule", learner: Learner) -> Rollout:
        """Score a rollout before the first update: old and reference log-probs, values, entropies."""
        if not learner.score_names:
            return rollout
        rows = rollout.rows(data.plan.max_tokens_per_micro_batch)
        layout = {"packing": data.load.packing, "pad_token_id": data.tokenizer.pad_token_id or 0}
        score = partial(learner.sharding.forward, learner.score)
        with learner.scoring_mode():
            scores = score_rows(rows, score, data.plan, **layout, device=learner.device)
        sampled = rollout.token_columns["sampled_logps"]
        if "old_logps" in scores:  # completions of the data may come without their log-probs
            scores["sampled_logps"] = sampled.where(~sampled.isnan(), scores["old_logps"])
        return rollout.with_token_columns(**scores)

    def _compare(self, rollout: Rollout) -> dict[str, float]:
        """Compare the sampler's log-probs with the trainer's, if those were computed.

        Raises:
            ParityError: The difference is larger than the sampler allows.
        """
        columns = rollout.token_columns
        if "old_logps" not in columns:
            return {}
        parity = measure(columns["sampled_logps"], columns["old_logps"])
        self.sampler.check_parity(parity)
        return {f"rollout/parity_{name}": value for name, value in vars(parity).items()}

    def _adapt_kl_coef(self, rollout: Rollout) -> dict[str, float]:
        """Adapt the KL coefficient towards the target KL, and return metrics."""
        if not self.reward_kl_coef:
            return {}
        used, kl = self.reward_kl_coef, self.token_kl(rollout).sum().item() / len(rollout)
        if self.settings.reward_kl_target is not None:
            self.reward_kl_coef = next_kl_coef(used, kl, target=self.settings.reward_kl_target, gain=0.1)
        return {"kl_per_completion": kl, "reward_kl_coef": used}

    def _warn_of_equal_rewards(self, share: float) -> None:
        """Warn, once in a row of rollouts, if comparing the completions of a prompt teaches nothing.

        Args:
            share: Share of the prompts whose completions all have the same reward.
        """
        self.num_flat = self.num_flat + 1 if share == 1 and self.settings.num_completions > 1 else 0
        if self.num_flat == NUM_FLAT_ROLLOUTS:
            text = "in %d rollouts in a row all completions of each prompt had the same reward, so that comparing them"
            log.warning(f"{text} teaches nothing: look at the samples and at the reward", self.num_flat)

    # --- filters ------------------------------------------------------------------------------------------------------

    def _gather(self, sample: Callable[..., Any], number: int, next_prompts: NextPrompts) -> tuple[Rollout, Rollout]:
        """Sample until there are rows to train on. Returns all completions, and those left after the filters."""
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
                sampled, kept = sampled.concatenate(more), kept.concatenate(self._filter(more))
            if len(kept):
                return sampled, kept
            log.warning("rollout %d: the filters left none of %d groups; sampling other prompts", number, wanted)
        raise RunError(
            f"method.group_filter={settings.group_filter} method.truncated={settings.truncated}",
            f"in {MAX_EMPTY_ROLLOUTS} rollouts in a row, every group had equal rewards or only truncated completions",
            "Raise method.num_completions or rollout.max_completion_tokens, use easier prompts, or type "
            "method.group_filter=keep method.truncated=keep",
        )

    def _sample_rewarded(
        self, sample: Callable[..., Any], take: Callable[[], Sequence[TokenRow]], key: tuple[int, ...]
    ) -> Rollout:
        """Sample completions, of other prompts while no reward scores any; ``failure_limit`` ends the run."""
        for again in count():
            rollout, counts = sample(take(), (*key, again) if again else key)
            if self.failure_limit.is_scored(counts):
                break
        return rollout

    def _filter(self, rollout: Rollout) -> Rollout:
        """Filter out truncated completions and groups whose rewards are all equal, as set."""
        if self.settings.truncated == "mask":
            rollout = rollout.keep(rollout.completions.finished)
        if self.settings.group_filter == "keep" or not len(rollout):
            return rollout
        flat = flat_groups(rollout.columns["reward"], rollout.group_ids)
        return rollout.keep(~flat[rollout.group_ids])
