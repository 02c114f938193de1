"""Completions sampled by vLLM servers, which have a copy of the policy: ``rollout=vllm``.

All ranks take part in every call; rank 0 sends the requests. The completions of a prompt depend on its seed and the
weights, not on the number of ranks or servers.
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
from alignlab.rollout.completions import Completion, Completions
from alignlab.rollout.sampler.base import Sampler, SamplingProgress
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.vllm.engine import Engine, open_engine
from alignlab.rollout.vllm.parity import Parity, check_parity
from alignlab.rollout.vllm.settings import VLLMSettings
from alignlab.rollout.vllm.weights import Probe
from alignlab.rollout.weight_sync import PolicySource
from alignlab.types.rows import TokenRow

NUM_PROBE_TOKENS = 32
"""Maximum number of completion tokens of the probe, by which servers and trainer are compared after an update."""

Write = Callable[[Path], None]
"""Writes weights to a folder."""


@dataclass(kw_only=True, eq=False)
class VLLMRollout(VLLMSettings, Sampler):
    """Samples from vLLM servers; see ``VLLMSettings`` and ``SamplingSettings``.

    Args:
        temperature: Sampling temperature; 0 for greedy completions.
        top_k: Number of most probable tokens to sample from; 0 for all.
        top_p: Cumulative probability to sample from; 1 for all.
        min_p: Minimum probability relative to the most probable token; 0 for none.
        repetition_penalty: Repetition penalty; 1 for none.
        max_completion_tokens: Maximum number of tokens of a completion.
        stop_strings: Strings that end a completion.
        parity_warning: Mean difference of the sampled log-probs from the trainer's at which to warn, in nats per token.
        parity_limit: Mean difference at which to end the run, in nats per token.
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
    """Its log-probs come from another engine, so training computes its own."""

    needs_whole_policy: ClassVar[bool] = False
    """The servers have their own copy."""

    @property
    def is_open(self) -> bool:
        """Whether the servers are running."""
        return self.probe is not None

    def refresh(self, source: PolicySource) -> dict[str, float]:
        """Start the servers if necessary, and send them the weights of the policy.

        Returns:
            Duration in seconds, and difference of the servers' log-probs of the probe from the trainer's.
        """
        started = time.perf_counter()
        if not self.is_open:
            settings = {"prompt": source.prompt, "stop_tokens": source.stop_tokens, "lora_rank": source.lora_rank}
            self.open(source.initial_weights(), **settings, log_dir=source.log_dir)
        difference = self.update(source.current_weights(), source.logps)
        return {"time/weights": time.perf_counter() - started, "rollout/arrival_difference": difference}

    def open(
        self,
        model: str | Write,
        *,
        prompt: Sequence[int],
        stop_tokens: Sequence[int],
        lora_rank: int | None,
        log_dir: Path,
    ) -> None:
        """Start the servers or connect to external ones, and sample the completion of the probe.

        Args:
            model: Initial weights; see ``open_engine``.
            prompt: Token ids of the prompt of the probe.
            stop_tokens: Tokens that end a completion.
            lora_rank: Rank of the adapter that will be sent; ``None`` for full weights.
            log_dir: Folder for the logs of started servers.

        Raises:
            ServerError, InputError: As ``open_engine``.
        """
        settings, options = self._settings(stop_tokens), {"lora_rank": lora_rank, "log_dir": log_dir}
        self.probe = on_rank_zero(lambda: self._open(list(prompt), settings, model=model, **options))

    def update(self, write: Write, logps: Callable[[list[int], list[int]], list[float]]) -> float:
        """Send the weights of the policy, and check that the servers use them.

        Args:
            write: Writes the weights; called on rank 0.
            logps: Prompt and completion → log-probs of the completion's tokens in the training forward, at temperature
                1; called on all ranks.

        Returns:
            Largest mean difference of a server's log-probs of the probe from the trainer's, in nats per token.

        Raises:
            ArrivalError, ServerError, InputError: As ``Engine.update``.
        """
        prompt, completion = self.probe
        probe = Probe([*prompt, *completion], logps(prompt, completion))
        return on_rank_zero(lambda: self.engine.update(write, probe))

    def __call__(
        self,
        model: Any,
        prompts: Sequence[TokenRow],
        *,
        num_completions: int,
        stop_tokens: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        generator: Sequence[torch.Generator],
        greedy: bool = False,
    ) -> Completions:
        """Sample completions of this rank's prompts. All ranks must call this.

        Args:
            model: Not used; ``update`` has sent its weights to the servers.
            prompts: P rows, no prompt empty.
            num_completions: G, the number of completions per prompt.
            stop_tokens: Tokens that end a completion.
            tokenizer: Not used; the servers have their own.
            generator: One per prompt, which gives the seed of the prompt.
            greedy: Whether to take the most probable tokens instead of sampling.

        Returns:
            G completions per prompt, in the order of the prompts.

        Raises:
            ServerError, InputError: As ``Engine.sample``.
        """
        seeds = [one.initial_seed() >> 2 for one in generator]
        shares = all_gather(([row.tokens for row in prompts], seeds))
        settings = self._settings(stop_tokens)
        settings = replace(settings, temperature=0.0) if greedy else settings
        total = num_completions * sum(len(share) for share, _ in shares)
        drawn = on_rank_zero(
            lambda: self.engine.sample(
                [prompt for share, _ in shares for prompt in share],
                num_completions=num_completions,
                settings=settings,
                seeds=[seed for _, share in shares for seed in share],
                on_prompt=self._counter(total),
            )
        )
        start = sum(len(share) for share, _ in shares[: rank()])
        return Completions.of([one for group in drawn[start : start + len(prompts)] for one in group])

    def check_parity(self, parity: Parity) -> None:
        """Warn or raise if the sampled log-probs differ from those of the trainer.

        Raises:
            ParityError: As ``parity.check_parity``.
        """
        check_parity(parity, warn_at=self.parity_warning, stop_at=self.parity_limit)

    def close(self) -> None:
        """Stop the servers that were started, if any."""
        if self.engine is not None:
            self.engine.close()
        self.engine = self.probe = None

    def _counter(self, total: int) -> Callable[[list[Completion]], None]:
        """Count the completions that arrive, and report the progress. A prompt that is requested again counts twice."""
        started, lengths, max_tokens = time.monotonic(), [], total * self.max_completion_tokens

        def count(completions: list[Completion]) -> None:
            lengths.extend(len(one.tokens) for one in completions)
            counts = {"num_ended": min(total, len(lengths)), "num_completions": total, "num_tokens": sum(lengths)}
            self.on_progress(SamplingProgress(**counts, max_tokens=max_tokens, seconds=time.monotonic() - started))

        return count

    def _settings(self, stop_tokens: Sequence[int]) -> SamplingSettings:
        names = [entry.name for entry in fields(SamplingSettings) if entry.name != "stop_tokens"]
        return SamplingSettings(stop_tokens=stop_tokens, **{name: getattr(self, name) for name in names})

    def _open(self, prompt: list[int], settings: SamplingSettings, **options: Any) -> tuple[list[int], list[int]]:
        self.engine = open_engine(self, sampling=settings, **options)
        short = replace(settings, max_completion_tokens=min(NUM_PROBE_TOKENS, settings.max_completion_tokens))
        (drawn,) = self.engine.sample([prompt], num_completions=4, settings=short, seeds=[0])
        return prompt, max((one.tokens for one in drawn), key=len)
