"""What a loss returns: sums with their units, and metrics as sums with their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from alignlab.errors import InputError


@dataclass(frozen=True)
class Ratio:
    """A sum and its weight, both ``[]``: the mean is taken once, over the whole optimizer step and all ranks."""

    sum: Tensor
    weight: Tensor


@dataclass(frozen=True)
class LossTerm:
    """Losses to sum over the optimizer step and to divide by the step's count of a unit.

    Args:
        losses: One per item, or their sum over the micro-batch; carry the gradient. Any shape.
        unit: What the step's mean is over: one of ``UNITS``, or a numeric column of the data.
    """

    losses: Tensor
    unit: str

    @property
    def sum(self) -> Tensor:
        """Sum over the micro-batch. Shape ``[]``."""
        return self.losses.sum()

    def __mul__(self, factor: float | Tensor) -> "LossTerm":
        """The term with every loss multiplied; a tensor has the shape of ``losses``.

        Raises:
            InputError: It has another shape: the loss returned a sum, whose parts cannot be weighed.
        """
        if isinstance(factor, Tensor) and factor.dim() and factor.shape != self.losses.shape:
            why = f"there are {factor.numel()} weights, and the loss has the shape {list(self.losses.shape)}"
            raise InputError(f"a loss per {self.unit!r} with weights", why, "Return one loss for each item, not a sum")
        return LossTerm(self.losses * factor, self.unit)


@dataclass(frozen=True)
class LossOutput:
    """What ``compute_loss`` returns: sums with their units, never means.

    Args:
        terms: The loss of the step is the sum of the means of these terms.
        metrics: Further quantities by logged name (see ``metrics.py``), detached.
    """

    terms: Sequence[LossTerm]
    metrics: Mapping[str, Ratio] = field(default_factory=dict)
