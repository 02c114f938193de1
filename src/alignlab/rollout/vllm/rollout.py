"""Completions drawn by vLLM servers that hold a copy of the policy: ``rollout=vllm``.

All ranks take part in every call; the first of them talks to the servers. What a prompt's completions are depends on
its own seed and on the weights, neither on the number of ranks nor on that of servers.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from alignlab.distributed.comm import all_gather, on_rank_zero, rank
from alignlab.rollout.completions import Completions
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.vllm.engine import Engine, open_engine
from alignlab.rollout.vllm.parity import Parity, judge
from alignlab.rollout.vllm.settings import VLLMSettings
from alignlab.rollout.vllm.weights import Probe
from alignlab.rollout.weight_sync import PolicySource

NUM_PROBE_TOKENS = 32
"""Most tokens of the completion by which servers and trainer are compared after an update."""

Write = Callable[[Path], None]
"""Writes weights into a folder."""


@dataclass(kw_only=True, eq=False)
class VLLMRollout(VLLMSettings, Sampler):
    """Draws from servers; see ``VLLMSettings`` for which, and for how far they may be trusted.

    Args:
        temperature: As in ``SamplingSettings``, like the six after it.
        top_k: Tokens to draw from; 0 for all.
        top_p: Probability to draw from; 1 for all.
        min_p: Least probability, as a share of the largest; 0 for all.
        repetition_penalty: 1 for none.
        max_completion_tokens: Most tokens of a completion.
        stop_strings: Texts that end a completion.
        parity_warning: Mean difference of the samples' log-probabilities from the trainer's to warn of, nats per token.
        parity_limit: The same, to stop at.
    """

    temperature: Annotated[float, Field(ge=0)]
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    min_p: Annotated[float, Field(ge=0, le=1)]
    repetition_penalty: Annotated[float, Field(gt=0)]
    max_completion_tokens: Annotated[int, Field(ge=1)]
    stop_strings: list[str]
    parity_warning: Annotated[float, Field(gt=0)]
    parity_limit: Annotated[float, Field(gt=0)]
    engine: Engine | None = field(default=None, init=False, repr=False)
    probe: tuple[list[int], list[int]] | None = field(default=None, init=False, repr=False)

    is_exact: ClassVar[bool] = False
    """Its log-probabilities are another engine's, so training computes its own."""

    needs_whole_policy: ClassVar[bool] = False
    """The servers have the weights."""

    @property
    def is_open(self) -> bool:
        """Whether servers were started or found."""
        return self.probe is not None

    def refresh(self, source: PolicySource) -> dict[str, float]:
        """Start the servers where they are not started, and send them the policy's weights.

        Returns:
            Seconds that it took, and how far the servers' view of the probe is from the trainer's.
        """
        clock = time.perf_counter()
        if not self.is_open:
            settings = {"prompt": source.prompt, "stop_tokens": source.stop_tokens, "lora_rank": source.lora_rank}
            self.open(source.first_weights(), **settings, log_dir=source.log_dir)
        difference = self.update(source.current_weights(), source.logps)
        return {"time/weights": time.perf_counter() - clock, "rollout/arrival_difference": difference}

    def open(
        self,
        model: str | Write,
        *,
        prompt: Sequence[int],
        stop_tokens: Sequence[int],
        lora_rank: int | None,
        log_dir: Path,
    ) -> None:
        """Start the servers, or find those that run, and have them write the completion that becomes the probe.

        Args:
            model: The weights to start with, as ``open_engine`` takes them.
            prompt: Of the probe.
            stop_tokens: Tokens that end a completion.
            lora_rank: Of the adapter that will be sent; ``None`` where full weights are.
            log_dir: Takes what started servers print.

        Raises:
            ServerError, InputError: As ``open_engine``.
        """
        settings, options = self._settings(stop_tokens), {"lora_rank": lora_rank, "log_dir": log_dir}
        self.probe = on_rank_zero(lambda: self._open(list(prompt), settings, model=model, **options))

    def update(self, write: Write, logps: Callable[[list[int], list[int]], list[float]]) -> float:
        """Send the policy's weights, and have it proved that they arrived.

        Args:
            write: Writes them; called on rank 0.
            logps: Prompt and completion → the training forward's log-probabilities of the completion's tokens, at
                temperature 1; called on all ranks.

        Returns:
            Mean difference of the servers' view of the probe from the trainer's, nats per token.

        Raises:
            ArrivalError, ServerError, InputError: As ``Engine.update``.
        """
        prompt, completion = self.probe
        probe = Probe([*prompt, *completion], logps(prompt, completion))
        return on_rank_zero(lambda: self.engine.update(write, probe))

    def __call__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        num_completions: int,
        stop_tokens: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        generator: Sequence[torch.Generator],
        greedy: bool = False,
    ) -> Completions:
        """Draw completions of this rank's prompts; all ranks call it.

        Args:
            model: Not looked at; the servers have its weights since ``update``.
            prompts: Token ids, none empty.
            num_completions: G.
            stop_tokens: Tokens that end a completion.
            tokenizer: Not needed; the servers have their own.
            generator: One per prompt; its seed is that of the prompt.
            greedy: Write the most probable tokens instead.

        Returns:
            G completions per prompt, in the order of the prompts.

        Raises:
            ServerError, InputError: As ``Engine.sample``.
        """
        seeds = [one.initial_seed() >> 2 for one in generator]
        shares = all_gather((list(prompts), seeds))
        settings = self._settings(stop_tokens)
        settings = replace(settings, temperature=0.0) if greedy else settings
        drawn = on_rank_zero(
            lambda: self.engine.sample(
                [prompt for share, _ in shares for prompt in share],
                num_completions=num_completions,
                settings=settings,
                seeds=[seed for _, share in shares for seed in share],
            )
        )
        start = sum(len(share) for share, _ in shares[: rank()])
        return Completions.of([one for group in drawn[start : start + len(prompts)] for one in group])

    def judge(self, parity: Parity) -> None:
        """Warn of samples that are not quite the policy's, or stop at them.

        Raises:
            ParityError: As ``parity.judge``.
        """
        judge(parity, warn_at=self.parity_warning, stop_at=self.parity_limit)

    def close(self) -> None:
        """End servers that are ours; harmless where none run."""
        if self.engine is not None:
            self.engine.close()
        self.engine = self.probe = None

    def _settings(self, stop_tokens: Sequence[int]) -> SamplingSettings:
        names = [entry.name for entry in fields(SamplingSettings) if entry.name != "stop_tokens"]
        return SamplingSettings(stop_tokens=stop_tokens, **{name: getattr(self, name) for name in names})

    def _open(self, prompt: list[int], settings: SamplingSettings, **options: Any) -> tuple[list[int], list[int]]:
        self.engine = open_engine(self, sampling=settings, **options)
        short = replace(settings, max_completion_tokens=min(NUM_PROBE_TOKENS, settings.max_completion_tokens))
        (drawn,) = self.engine.sample([prompt], num_completions=4, settings=short, seeds=[0])
        return prompt, max((one.tokens for one in drawn), key=len)
