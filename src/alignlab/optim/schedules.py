"""Learning rate schedules over optimizer steps, from Transformers: ``fn(optimizer, *, num_training_steps, …)``.

Each rises linearly in the first ``warmup_steps``, from ``1 / warmup_steps`` of the learning rate in the first step to
the full learning rate in the last. Values of ``warmup_steps`` and ``decay_steps`` below 1 are shares of the run, values
of 1 and above are optimizer steps.
"""

import math
from typing import Annotated, Literal

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import optimization

from alignlab.errors import InputError

Steps = Annotated[int | float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def constant(optimizer: Optimizer, *, num_training_steps: int, warmup_steps: Steps) -> LRScheduler:
    """Warm-up, then a constant learning rate."""
    warmup = num_steps("warmup_steps", warmup_steps, num_training_steps)
    return _counted_from_one(optimization.get_constant_schedule_with_warmup(optimizer, warmup), warmup)


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
    schedule = optimization.get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup, num_training_steps, min_lr_rate=min_lr_ratio
    )
    return _counted_from_one(schedule, warmup)


def wsd(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    warmup_steps: Steps,
    decay_steps: Steps,
    min_lr_ratio: Share,
    decay_type: Literal["linear", "cosine", "1-sqrt"],
) -> LRScheduler:
    """Warm-up, a constant rate, then a decay in the last ``decay_steps`` (Hu et al. 2024, arXiv 2404.06395)."""
    warmup = num_steps("warmup_steps", warmup_steps, num_training_steps)
    decay = num_steps("decay_steps", decay_steps, num_training_steps)
    if warmup + decay > num_training_steps:
        asked = f"scheduler.warmup_steps={warmup} scheduler.decay_steps={decay}"
        raise InputError(asked, f"the run has {num_training_steps} optimizer steps in all", "Shorten one of them")
    schedule = optimization.get_wsd_schedule(
        optimizer, warmup, decay, num_training_steps, decay_type=decay_type, min_lr_ratio=min_lr_ratio
    )
    return _counted_from_one(schedule, warmup)


def inverse_sqrt(
    optimizer: Optimizer, *, num_training_steps: int, warmup_steps: Steps, timescale_steps: int | None
) -> LRScheduler:
    """Warm-up, then a decay with the inverse square root of step / ``timescale_steps`` (``None``: warm-up steps)."""
    warmup = num_steps("warmup_steps", warmup_steps, num_training_steps)
    return _counted_from_one(optimization.get_inverse_sqrt_schedule(optimizer, warmup, timescale_steps), warmup)


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
    rate = optimizer.defaults["lr"]
    if min_lr_ratio == 1:  # Transformers requires an end below the start
        return _counted_from_one(optimization.get_constant_schedule_with_warmup(optimizer, warmup), warmup)
    schedule = optimization.get_polynomial_decay_schedule_with_warmup(
        optimizer, warmup, num_training_steps, lr_end=rate * min_lr_ratio, power=power
    )
    return _counted_from_one(schedule, warmup)


def _counted_from_one(schedule: LambdaLR, warmup: int) -> LambdaLR:
    """Shift the warm-up by one step: Transformers starts at a rate of 0, at which the first step has no effect."""
    factors = [lambda step, factor=factor: factor(step + (step < warmup)) for factor in schedule.lr_lambdas]
    return LambdaLR(schedule.optimizer, factors)


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
