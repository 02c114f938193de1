"""How the work is spread: the names of ``strategy=`` and what Lightning knows them as."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any

from lightning.pytorch.strategies import DDPStrategy, Strategy
from pydantic import Field

from alignlab.errors import InputError, nearest


def single() -> str:
    """One process on one device."""
    return "auto"


def ddp(*, timeout_seconds: Annotated[float, Field(gt=0)]) -> Strategy:
    """A copy of the model on every device, gradients averaged (nccl on GPUs, gloo on CPUs).

    Args:
        timeout_seconds: After which a rank that does not answer ends the job.
    """
    return DDPStrategy(timeout=timedelta(seconds=timeout_seconds))


STRATEGIES: dict[str, Callable[..., Strategy | str]] = {"single": single, "ddp": ddp}


def make_strategy(name: str, **options: Any) -> Strategy | str:
    """The strategy of a name.

    Args:
        name: As in ``strategy=``.
        options: Keyword arguments of its function above.

    Raises:
        InputError: There is no such strategy.
    """
    if name not in STRATEGIES:
        raise InputError(f"strategy={name}", "there is no such strategy", nearest(name, STRATEGIES))
    return STRATEGIES[name](**options)
