"""Buffer of the completions that are being sampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignlab.rollout.completions import Completions
from alignlab.rollout.sampler.sampling import SamplingSettings, draw
from alignlab.rollout.sampler.stopping import Stopping


@dataclass
class Rows:
    """Completions that are being sampled; each field is ``[R]`` or ``[R, V]``.

    Args:
        number: Index of the completion in the buffer.
        length: Number of tokens so far.
        active: Whether it has not ended yet.
        stopped: Whether it ended with a stop token or stop string.
        logits: Logits of its next token, float32.
        seen: Mask of the tokens in its prompt and itself; None without repetition penalty.
    """

    number: Tensor
    length: Tensor
    active: Tensor
    stopped: Tensor
    logits: Tensor
    seen: Tensor | None

    def __len__(self) -> int:
        return len(self.number)

    def at(self, indices: Tensor) -> "Rows":
        """Select rows."""
        return Rows(**{name: value if value is None else value[indices] for name, value in vars(self).items()})

    def concatenate(self, others: "Rows") -> "Rows":
        """Append other rows."""
        pairs = {name: (value, getattr(others, name)) for name, value in vars(self).items()}
        return Rows(**{name: None if pair[0] is None else torch.cat(pair) for name, pair in pairs.items()})


class CompletionBuffer:
    """Tokens and log-probs of all completions.

    Args:
        prompts: Token ids of P prompts.
        limits: Maximum number of tokens of a completion, for each prompt.
        num_completions: G, the number of completions per prompt.
        settings: Sampling settings.
        stopping: Stopping criteria; its device is that of all tensors.
        generator: Draws one uniform number for each possible token; or one generator per prompt.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        num_completions: int,
        settings: SamplingSettings,
        stopping: Stopping,
        generator: torch.Generator | Sequence[torch.Generator],
    ):
        self.prompts, self.num_completions = prompts, num_completions
        self.settings, self.stopping, self.longest = settings, stopping, max(limits)
        device, size = stopping.device, (len(prompts) * num_completions, settings.max_completion_tokens)
        generators = [generator] if isinstance(generator, torch.Generator) else generator
        shape = (size[0] // len(generators), size[1])
        noise = torch.cat([torch.rand(shape, dtype=torch.float64, generator=g, device=g.device) for g in generators])
        self.noise = noise[:, : self.longest].to(device)
        self.limits = torch.tensor(limits, device=device).repeat_interleave(num_completions)
        # The extra column takes the tokens that rows still draw after they have ended.
        self.tokens = torch.zeros(size[0], self.longest + 1, dtype=torch.long, device=device)
        self.logps = torch.zeros(size[0], self.longest + 1, device=device)
        self.lengths = torch.zeros_like(self.limits)
        self.stopped = torch.zeros_like(self.limits, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.limits)

    def prompt_of(self, number: int) -> int:
        """Index of the prompt of a completion."""
        return number // self.num_completions

    def open(self, numbers: range, logits: Tensor) -> Rows:
        """Start completions.

        Args:
            numbers: Indices of r completions.
            logits: Logits of their first tokens. Shape ``[r, V]``.
        """
        number = torch.tensor(numbers, device=logits.device)
        false = torch.zeros_like(number, dtype=torch.bool)
        seen = self._in_prompts(numbers, logits) if self.settings.repetition_penalty != 1 else None
        return Rows(number, torch.zeros_like(number), ~false, false, logits, seen)

    def _in_prompts(self, numbers: range, logits: Tensor) -> Tensor:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, number in enumerate(numbers):
            seen[row, torch.tensor(self.prompts[self.prompt_of(number)], device=seen.device)] = True
        return seen

    def write(self, rows: Rows) -> Tensor:
        """Sample and store the next token of every row, and update which rows are active.

        Returns:
            The tokens ``[R]``; to be ignored for rows that had already ended.
        """
        noise = self.noise[rows.number, rows.length.clamp(max=self.longest - 1)]
        tokens, logps = draw(rows.logits, noise, self.settings, rows.seen)
        column = torch.where(rows.active, rows.length, self.longest)
        self.tokens[rows.number, column], self.logps[rows.number, column] = tokens, logps
        rows.length = rows.length + rows.active
        stopped = self.stopping.ended(tokens, lambda row: self.tokens[rows.number[row], : rows.length[row]].tolist())
        rows.stopped = rows.stopped | (stopped & rows.active)
        rows.active = rows.active & ~stopped & (rows.length < self.limits[rows.number])
        if rows.seen is not None:
            rows.seen.scatter_(1, tokens[:, None], True)
        return tokens

    def close(self, rows: Rows) -> None:
        """Store the lengths of rows, and whether they stopped."""
        self.lengths[rows.number], self.stopped[rows.number] = rows.length, rows.stopped

    def completions(self) -> Completions:
        """All completions, G per prompt in the order of the prompts. All rows must be closed."""
        written = torch.arange(self.longest + 1, device=self.lengths.device) < self.lengths[:, None]
        return Completions(
            tokens=self.tokens[written].cpu(),
            logps=self.logps[written].cpu(),
            lengths=self.lengths.cpu(),
            finished=self.stopped.cpu(),
        )
