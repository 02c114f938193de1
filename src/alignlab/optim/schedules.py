"""Learning rate schedules over optimizer steps: ``fn(optimizer, *, num_training_steps, …)``.

Each rises linearly in the first ``warmup_steps``, from ``1 / warmup_steps`` of the learning rate in the first step to
the full learning rate in the last. Values of ``warmup_steps`` and ``decay_steps`` below 1 are shares of the run, values
of 1 and above are optimizer steps. The factors are those of ``transformers.optimization``, whose import would bring in
PEFT and bitsandbytes; a warm-up there begins at a rate of 0, at which the first step has no effect.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from alignlab.errors import InputError

Steps = Annotated[int | float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}
"""Decays from 1 to 0 while progress rises from 0 to 1."""


def constant(optimizer: Optimizer, *, num_training_steps: int, warmup_steps: Steps) -> LRScheduler:
    """Warm-up, then a constant learning rate."""
    return _warmed_up(optimizer, num_steps("warmup_steps", warmup_steps, num_training_steps), lambda step: 1.0)


def linear(optimizer: Optimizer, *, num_training_steps: int, warmup_steps: Steps, min_lr_ratio: Share) -> LRScheduler:
    """Warm-up, then a linear decay to ``min_lr_ratio`` of the learning rate."""
    return polynomial(
        optimizer,
        num_training_steps=num_training_steps,
        warmup_steps=warmup_steps,
        min_lr_ratio=min_lr_ratio,
        power=1.0,
    )


def cosine(optimizer: Optimizer, *, num_training_steps: int, warmup_steps: Steps, min_lr_ratio: Share) -> LRScheduler:
    """Warm-up, then a cosine decay to ``min_lr_ratio`` of the rate (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    warmup = num_steps("warmup_steps", warmup_steps, num_training_steps)
    decay = max(1, num_training_steps - warmup)
    return _warmed_up(
        optimizer, warmup, lambda step: _at_least(min_lr_ratio, DECAYS["cosine"]((step - warmup) / decay))
    )


def wsd(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    warmup_steps: Steps,
    decay_steps: Steps,
    min_lr_ratio: Share,
    decay_type: Literal["linear", "cosine", "1-sqrt"],
) -> LRScheduler:
    """Warm-up, a constant rate, then a decay in the last ``decay_steps`` (Hu et al. 2024, arXiv 2404.06395).

    The warm-up begins at ``min_lr_ratio`` of the rate.
    """
    warmup = num_steps("warmup_steps", warmup_steps, num_training_steps)
    decay = num_steps("decay_steps", decay_steps, num_training_steps)
    if warmup + decay > num_training_steps:
        asked = f"scheduler.warmup_steps={warmup} scheduler.decay_steps={decay}"
        raise InputError(asked, f"the run has {num_training_steps} optimizer steps in all", "Shorten one of them")
    stable = num_training_steps - decay

    def factor(step: int) -> float:
        progress = min(max(0, step - stable) / max(1, decay), 1.0)
        return _at_least(min_lr_ratio, DECAYS[decay_type](progress))

    return _warmed_up(optimizer, warmup, factor, lowest=min_lr_ratio)


def inverse_sqrt(
    optimizer: Optimizer, *, num_training_steps: int, warmup_steps: Steps, timescale_steps: int | None
) -> LRScheduler:
    """Warm-up, then a decay with the inverse square root of step / ``timescale_steps`` (``None``: warm-up steps)."""
    warmup = num_steps("warmup_steps", warmup_steps, num_training_steps)
    timescale = timescale_steps or warmup or 10_000
    return _warmed_up(optimizer, warmup, lambda step: 1.0 / math.sqrt((step + timescale - warmup) / timescale))


def polynomial(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    warmup_steps: Steps,
    min_lr_ratio: Share,
    power: Annotated[float, Field(gt=0)],
) -> LRScheduler:
    """Warm-up, then a decay with ``(1 − progress)^power`` to ``min_lr_ratio`` of the learning rate."""
    warmup = num_steps("warmup_steps", warmup_steps, num_training_steps)
    decay = max(1, num_training_steps - warmup)

    def factor(step: int) -> float:
        return _at_least(min_lr_ratio, max(0.0, 1.0 - (step - warmup) / decay) ** power)

    return _warmed_up(optimizer, warmup, factor)


def _warmed_up(optimizer: Optimizer, warmup: int, after: Callable[[int], float], lowest: float = 0.0) -> LambdaLR:
    """A schedule of factors: a linear rise from ``lowest``, then for each step what ``after`` gives."""

    def factor(step: int) -> float:
        step += step < warmup
        return _at_least(lowest, step / warmup) if step < warmup else after(step)

    return LambdaLR(optimizer, factor)


def _at_least(lowest: float, factor: float) -> float:
    """Map factors from 0 to 1 onto factors from ``lowest`` to 1."""
    return max(0.0, factor * (1.0 - lowest) + lowest)


def set_rates(schedule: LRScheduler) -> tuple[float, float]:
    """Set the rates that a schedule asks for at its current step; a restored optimizer has those of another length.

    Args:
        schedule: Changed only if it is given by factors (``LambdaLR``), as all schedules of this module.

    Returns:
        The rate of the first group before and after.
    """
    groups = schedule.optimizer.param_groups
    before = float(groups[0]["lr"])
    if isinstance(schedule, LambdaLR):
        rates = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        schedule._last_lr = [base * factor(schedule.last_epoch) for base, factor in rates]
        for group, lr in zip(groups, schedule._last_lr, strict=True):
            group["lr"] = lr
    return before, float(groups[0]["lr"])


def num_steps(name: str, asked: int | float, num_training_steps: int) -> int:
    """Convert a number of steps (1 and above) or a share of the run (below 1, rounded up) to optimizer steps.

    Args:
        name: Key of the setting, for the error.
        asked: Steps or share, at least 0.
        num_training_steps: Optimizer steps of the whole run.

    Raises:
        InputError: It is a fraction above 1, or more steps than the run has.
    """
    if asked > 1 and asked != int(asked):
        instead = "Give whole optimizer steps, or a share of the run below 1"
        raise InputError(f"scheduler.{name}={asked}", "it is neither a number of steps nor a share", instead)
    steps = math.ceil(asked * num_training_steps) if asked < 1 else int(asked)
    if steps > num_training_steps:
        why = f"the run has {num_training_steps} optimizer steps in all"
        raise InputError(f"scheduler.{name}={asked}", why, f"Give at most {num_training_steps}, or a share below 1")
    return steps
