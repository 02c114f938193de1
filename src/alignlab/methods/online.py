"""What methods share that learn from completions they sample themselves.

A rollout is: prompts → G completions each → rewards → rows → advantages. Every rank samples and scores its share of the
prompts and then holds all rows, so that advantages, batches and what is logged do not depend on the number of ranks.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Annotated, Any, ClassVar, Literal

import lightning
import torch
from pydantic import Field
from torch import Tensor

from alignlab.data.datamodule import DataModule
from alignlab.data.tokenise.templates import choose_template, stop_tokens
from alignlab.distributed.comm import all_gather, num_ranks
from alignlab.errors import RunError
from alignlab.losses.kl import next_kl_coef
from alignlab.losses.policy_gradient import PolicyTokens
from alignlab.methods.referenced import Referenced
from alignlab.models.scoring import token_scores
from alignlab.rewards.scorer import Limits, Scorer
from alignlab.rewards.tallies import Watch
from alignlab.rollout.groups import Group, Rollout, split
from alignlab.rollout.loader import ExperienceLoader, ExperienceSettings, NextPrompts, prompt_windows
from alignlab.rollout.metrics import rollout_metrics
from alignlab.rollout.sample import sample_groups
from alignlab.rollout.score import annotate
from alignlab.rollout.weight_sync import Closing, holds_copy, parity_metrics, refresh
from alignlab.types.batch import MicroBatch, StepBatch
from alignlab.types.rows import Prompt, TokenRow

log = logging.getLogger(__name__)

MAX_EMPTY_ROLLOUTS = 10
"""Rollouts in a row from which nothing can be learned."""

Count = Annotated[int, Field(ge=1)]
Coefficient = Annotated[float, Field(ge=0)]


class Online(Referenced):
    """A method that learns from its own samples.

    Args:
        rollout: What samples: the weights in training (``rollout.sampler``) or a copy (``rollout.vllm.rollout``).
        reward: Rewards by name; see ``rewards``.
        reward_weights: Weights of the rewards, in their order; ``None`` for 1 each.
        reward_limits: Of every reward: see ``rewards.scorer``.
        reward_kl_coef: Taken off the reward per nat of divergence from the reference.
        reward_kl_target: Divergence per completion that the coefficient is steered to; ``None`` leaves it fixed.
        num_completions: G, completions per prompt.
        num_iterations: Times that each completion is learned from.
        steps_per_rollout: Optimizer steps into which a rollout is cut.
        group_filter: What to do with groups whose rewards are all equal: keep, drop, or sample other prompts instead.
        max_resample_rounds: Further rounds of prompts at most, for ``resample``.
        truncated: What to do with completions cut at the limit: keep, leave out, or penalise.
        truncation_penalty: Taken off the reward of a cut completion, for ``penalise``.
        right_reward: Reward from which on a completion counts as right, in what is logged.
        factories: See ``Referenced``.
    """

    row_kind = Prompt

    wants_greedy: ClassVar[bool] = False
    """Whether each prompt is also completed greedily, for a baseline."""

    def __init__(
        self,
        *,
        rollout: Any,
        reward: dict[str, Any],
        reward_weights: list[float] | None,
        reward_limits: Limits,
        reward_kl_coef: Coefficient,
        reward_kl_target: Annotated[float, Field(gt=0)] | None,
        num_completions: Count,
        num_iterations: Count,
        steps_per_rollout: Count,
        group_filter: Literal["keep", "drop", "resample"],
        max_resample_rounds: Annotated[int, Field(ge=0)],
        truncated: Literal["keep", "mask", "penalise"],
        truncation_penalty: Coefficient,
        right_reward: float,
        **factories,
    ):
        super().__init__(precompute_reference=False, **factories)
        self.rollout, self.scorer = rollout, Scorer(reward, reward_weights, reward_limits)
        self.watch = Watch(reward_limits.max_failed_rollouts)
        self.reward_kl_coef, self.reward_kl_target = reward_kl_coef, reward_kl_target
        self.num_completions, self.num_iterations = num_completions, num_iterations
        self.steps_per_rollout = steps_per_rollout
        self.group_filter, self.max_resample_rounds = group_filter, max_resample_rounds
        self.truncated, self.truncation_penalty = truncated, truncation_penalty
        self.right_reward = right_reward
        self.metrics_of_rollout: dict[str, float] = {}
        self.samples: list[Group] = []

    # --- what a method writes, besides compute_loss ------------------------------------------------------------------

    def learnable(self, rollout: Rollout) -> list[TokenRow]:
        """The rows of a rollout with what ``compute_loss`` needs, such as advantages."""
        raise NotImplementedError(f"{type(self).__name__} has no learnable(rollout)")

    def known_before(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Values of tokens to compute before learning begins, each ``[N]``."""
        known = {} if self.exact else {"old_logps": self._logps(batch)}
        return known | ({"reference_logps": self.reference_token_logps(batch)} if self.reward_kl_coef else {})

    @property
    def scores_before(self) -> bool:
        """Whether ``known_before`` has anything to say."""
        return bool(self.reward_kl_coef) or not self.exact

    @property
    def exact(self) -> bool:
        """Whether the log-probabilities taken while sampling are those of the training forward."""
        return self.rollout.exact and not self.is_low_precision

    def policy_tokens(self, batch: MicroBatch, advantages: Tensor) -> PolicyTokens:
        """The tokens of a micro-batch as losses take them.

        Args:
            batch: Rows of a rollout.
            advantages: Of each token. Shape ``[N]``.
        """
        return self.policy_tokens_and_hidden(batch, advantages)[0]

    def policy_tokens_and_hidden(self, batch: MicroBatch, advantages: Tensor) -> tuple[PolicyTokens, Tensor]:
        """The same with the hidden states that predict the tokens ``[N, hidden]``, for a critic."""
        scores = token_scores(self.policy, batch, temperature=self.temperature, want=("entropies",))
        columns, once = batch.token_columns, self.num_iterations * self.steps_per_rollout == 1
        tokens = PolicyTokens(
            token_logps=scores.logps,
            advantages=advantages.to(scores.logps),
            sequence_ids=batch.sequence_ids,
            num_sequences=batch.num_sequences,
            old_token_logps=None if once else columns.get("old_logps", columns["sampled_logps"]),
            sampled_token_logps=columns["sampled_logps"] if "old_logps" in columns else None,
            entropies=scores.entropies,
        )
        return tokens, scores.hidden

    # --- what the house asks ------------------------------------------------------------------------------------------

    def experience(self, data: DataModule, num_steps: int) -> ExperienceLoader:
        """Optimizer steps made of what the policy samples."""
        settings = ExperienceSettings(
            plan=data.plan,
            steps_per_rollout=self.steps_per_rollout,
            num_iterations=self.num_iterations,
            packing=data.load.packing,
            pad_token_id=data.tokenizer.pad_token_id or 0,
        )
        windows = prompt_windows(data, self.steps_per_rollout)
        ranks = {"rank": self.trainer.global_rank, "num_ranks": num_ranks()}
        return ExperienceLoader(windows, self.roll_out, settings=settings, num_steps=num_steps, **ranks)

    def on_fit_start(self) -> None:
        """Let rewards that compute on a device do so on that of the run."""
        super().on_fit_start()
        self.scorer.to(self.device)

    def on_fit_end(self) -> None:
        """End the processes of rewards."""
        self.scorer.close()

    def configure_callbacks(self) -> list[lightning.Callback]:
        """What closes a sampler that has something to close."""
        return [Closing(self.rollout)] if holds_copy(self.rollout) else []

    def has_signal(self, step: StepBatch) -> bool:
        """Completions that are all alike good teach nothing."""
        each = (batch.token_columns | batch.columns for batch in step.micro_batches)
        return any(all_gather(any(bool(columns["advantages"].any()) for columns in each)))

    def validation_step(self, step: Any, batch_index: int) -> None:
        """Nothing: held-out prompts have no completions to compute a loss on."""

    def step_metrics(self) -> dict[str, float]:
        """What is logged once per rollout, with its first step."""
        metrics, self.metrics_of_rollout = self.metrics_of_rollout, {}
        return metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the coefficient that may have been steered."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reward_kl_coef"] = self.reward_kl_coef

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(checkpoint)
        self.reward_kl_coef = checkpoint["reward_kl_coef"]

    # --- a rollout ----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> DataModule:
        """The data of this run."""
        return self.trainer.datamodule

    @property
    def temperature(self) -> float:
        """That of the sampling, at which the policy is scored too."""
        return self.rollout.temperature or 1.0

    @property
    def stop_tokens(self) -> list[int]:
        """Tokens that end a completion."""
        tokenizer = self.data.tokenizer
        return sorted(stop_tokens(tokenizer, choose_template(tokenizer, self.data.tokens.chat_template)))

    def roll_out(self, number: int, next_prompts: NextPrompts) -> list[TokenRow]:
        """Sample, score, and make rows to learn from; the same on all ranks."""
        sent = refresh(self)
        clock = time.perf_counter()
        sampled, kept = self._gather_groups(number, next_prompts)
        scored = time.perf_counter()
        limit = self.data.plan.max_tokens_per_micro_batch
        rows = [part for index, group in enumerate(kept) for part in split(group.row(index), limit)]
        if self.scores_before:
            with self.as_in_training():
                rows = annotate(rows, partial(self.sharding.forward, self.known_before), self.data, self.device)
        rollout = Rollout(rows)
        parity = parity_metrics(self, rollout)
        rows, kl = self.learnable(rollout), self._steer(rollout)
        self.samples = sampled
        timing = {"time/rollout": scored - clock, "time/scoring": time.perf_counter() - scored}
        self.metrics_of_rollout = rollout_metrics(sampled, self.right_reward) | timing | sent | parity | kl
        return rows

    def token_kl(self, rollout: Rollout) -> Tensor:
        """k1 estimates of the divergence from the reference at each token; zeros without one. Shape ``[N]``."""
        columns = rollout.token_columns
        if "reference_logps" not in columns:
            return torch.zeros(len(rollout.sequence_ids), dtype=torch.float64)
        return columns.get("old_logps", columns["sampled_logps"]) - columns["reference_logps"]

    def _steer(self, rollout: Rollout) -> dict[str, float]:
        """Move the coefficient towards its target; gives what is logged."""
        if not self.reward_kl_coef:
            return {}
        used, kl = self.reward_kl_coef, self.token_kl(rollout).sum().item() / len(rollout.lengths)
        if self.reward_kl_target is not None:
            self.reward_kl_coef = next_kl_coef(used, kl, target=self.reward_kl_target, gain=0.1)
        return {"kl_per_completion": kl, "reward_kl_coef": used}

    def _gather_groups(self, number: int, next_prompts: NextPrompts):
        """All groups that were sampled, and those to learn from."""
        for attempt in range(MAX_EMPTY_ROLLOUTS):
            sampled = self._sample_scored(next_prompts, (number, attempt, 0))
            kept, wanted = self._filter(sampled), len(sampled)
            for again in range(self.max_resample_rounds if self.group_filter == "resample" else 0):
                if len(kept) >= wanted:
                    break
                more = self._sample_scored(partial(next_prompts, wanted - len(kept)), (number, attempt, again + 1))
                sampled, kept = sampled + more, kept + self._filter(more)
            if kept:
                return sampled, kept
            log.warning("rollout %d: none of %d groups is left to learn from; sampling others", number, len(sampled))
        raise RunError(
            f"method.group_filter={self.group_filter} method.truncated={self.truncated}",
            f"in {MAX_EMPTY_ROLLOUTS} rollouts in a row all rewards of a prompt were equal, or all completions cut",
            "Raise method.num_completions or rollout.max_completion_tokens, take easier prompts, or type "
            "method.group_filter=keep method.truncated=keep",
        )

    def _sample_scored(self, take: Callable[[], Sequence[TokenRow]], key: tuple[int, ...]) -> list[Group]:
        """Groups of prompts; of others where no reward scored any completion, until the watch ends the run."""
        for again in count():
            groups, tallies = sample_groups(self, take(), (*key, again) if again else key)
            if self.watch.is_scored(tallies):
                break
        return groups

    def _filter(self, groups: Sequence[Group]) -> list[Group]:
        """What is learned from: left out are, where asked, cut completions and groups without spread."""
        if self.truncated == "mask":
            groups = [group.finished() for group in groups]
        groups = [group for group in groups if group.completions]
        return groups if self.group_filter == "keep" else [group for group in groups if group.sharding > 0]

    def _logps(self, batch: MicroBatch) -> Tensor:
        return token_scores(self.policy, batch, temperature=self.temperature).logps
