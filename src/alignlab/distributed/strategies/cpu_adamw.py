"""AdamW for weights and optimizer state in host memory, by DeepSpeed."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import Field
from torch.optim import Optimizer

from alignlab.errors import InputError

Share = Annotated[float, Field(ge=0, lt=1)]


def cpu_adamw(
    params: Iterable[Any],
    *,
    lr: Annotated[float, Field(gt=0)],
    betas: tuple[Share, Share],
    eps: Annotated[float, Field(gt=0)],
    weight_decay: Annotated[float, Field(ge=0)],
) -> Optimizer:
    """AdamW (arXiv 1711.05101) by DeepSpeed's ``cpu_adam``, which is compiled on first use.

    Args:
        params: Parameters in host memory, or groups of them.
        lr: Learning rate.
        betas: Decay of the averages of gradients and of their squares.
        eps: Added to the denominator.
        weight_decay: Decoupled from the gradient.

    Raises:
        InputError: DeepSpeed is not installed, or the operation does not compile.
    """
    if find_spec("deepspeed") is None:
        raise InputError("optimizer=cpu_adamw", "it is an optimizer of DeepSpeed, which is not installed", INSTEAD)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        made = DeepSpeedCPUAdam(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, adamw_mode=True)
        made.ds_opt_adam = Stateless(made.ds_opt_adam, lr, *betas, eps, weight_decay, True, False)
        return made
    except (RuntimeError, ImportError, OSError) as error:
        why = f"DeepSpeed's cpu_adam cannot be compiled here ({_first_cause(error)})"
        raise InputError("optimizer=cpu_adamw", why, INSTEAD) from error


class Stateless:
    """DeepSpeed's operation without state between steps, so that a resumed run equals an uninterrupted one.

    DeepSpeed multiplies the powers of the betas from step to step in float32, but computes them from the number of the
    step after a resume, and the last digits differ. Here they are computed from the number in every step.

    Args:
        op: The compiled operation.
        settings: What ``create_adam`` takes after the number of the optimizer.
    """

    def __init__(self, op: Any, *settings: Any):
        self.op, self.settings = op, settings

    def adam_update(self, number: int, *arguments: Any) -> Any:
        """Update one parameter."""
        self.op.create_adam(number, *self.settings)
        return self.op.adam_update(number, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)


INSTEAD = "Install a C++ compiler, ninja and pip install 'deepspeed>=0.19', or type optimizer=adamw"


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0][:200]
