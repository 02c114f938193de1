"""The completions of a rollout while they are written."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignlab.rollout.completions import Completions
from alignlab.rollout.sampler.sampling import SamplingSettings, draw
from alignlab.rollout.sampler.stopping import Stopping


@dataclass
class Rows:
    """Completions that are being written, each field ``[R]`` or ``[R, V]``.

    Args:
        number: Of the completion in the ledger.
        age: Tokens so far.
        alive: Whether it goes on.
        stopped: Whether it stopped by itself.
        logits: Of its next token, float32.
        seen: Tokens that its prompt and itself have; None without repetition penalty.
    """

    number: Tensor
    age: Tensor
    alive: Tensor
    stopped: Tensor
    logits: Tensor
    seen: Tensor | None

    def __len__(self) -> int:
        return len(self.number)

    def at(self, places: Tensor) -> "Rows":
        """The rows at these places."""
        return Rows(**{name: part if part is None else part[places] for name, part in vars(self).items()})

    def and_(self, others: "Rows") -> "Rows":
        """These and the others."""
        pairs = {name: (part, getattr(others, name)) for name, part in vars(self).items()}
        return Rows(**{name: None if pair[0] is None else torch.cat(pair) for name, pair in pairs.items()})


class CompletionBuffer:
    """Tokens and log-probabilities of all completions, side by side.

    Args:
        prompts: Token ids.
        limits: Most tokens of a completion of each prompt.
        num_completions: G.
        settings: How to draw.
        stopping: When to stop; its device is that of all tensors.
        generator: Draws a uniform number for every token that there may be; or one generator per prompt.
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
        # One column more than tokens: it takes what ended rows still draw.
        self.tokens = torch.zeros(size[0], self.longest + 1, dtype=torch.long, device=device)
        self.logps = torch.zeros(size[0], self.longest + 1, device=device)
        self.lengths = torch.zeros_like(self.limits)
        self.stopped = torch.zeros_like(self.limits, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.limits)

    def prompt_of(self, number: int) -> int:
        """The prompt of a completion."""
        return number // self.num_completions

    def open(self, numbers: range, logits: Tensor) -> Rows:
        """Begin completions.

        Args:
            numbers: r of them.
            logits: Of their first tokens. Shape ``[r, V]``.
        """
        number = torch.tensor(numbers, device=logits.device)
        no = torch.zeros_like(number, dtype=torch.bool)
        seen = self._in_prompts(numbers, logits) if self.settings.repetition_penalty != 1 else None
        return Rows(number, torch.zeros_like(number), ~no, no, logits, seen)

    def _in_prompts(self, numbers: range, logits: Tensor) -> Tensor:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, number in enumerate(numbers):
            seen[row, torch.tensor(self.prompts[self.prompt_of(number)], device=seen.device)] = True
        return seen

    def write(self, rows: Rows) -> Tensor:
        """Draw the next token of every row and write it down; the rows get older, and some end.

        Returns:
            The tokens ``[R]``; those of rows that had ended before mean nothing.
        """
        noise = self.noise[rows.number, rows.age.clamp(max=self.longest - 1)]
        tokens, logps = draw(rows.logits, noise, self.settings, rows.seen)
        column = torch.where(rows.alive, rows.age, self.longest)
        self.tokens[rows.number, column], self.logps[rows.number, column] = tokens, logps
        rows.age = rows.age + rows.alive
        stopped = self.stopping.ended(tokens, lambda row: self.tokens[rows.number[row], : rows.age[row]].tolist())
        rows.stopped = rows.stopped | (stopped & rows.alive)
        rows.alive = rows.alive & ~stopped & (rows.age < self.limits[rows.number])
        if rows.seen is not None:
            rows.seen.scatter_(1, tokens[:, None], True)
        return tokens

    def close(self, rows: Rows) -> None:
        """Note how far the rows have come."""
        self.lengths[rows.number], self.stopped[rows.number] = rows.age, rows.stopped

    def completions(self) -> Completions:
        """G per prompt, in the order of the prompts; all rows must be closed."""
        written = torch.arange(self.longest + 1, device=self.lengths.device) < self.lengths[:, None]
        return Completions(
            tokens=self.tokens[written].cpu(),
            logps=self.logps[written].cpu(),
            lengths=self.lengths.cpu(),
            finished=self.stopped.cpu(),
        )
