"""Whether a model has an adapter, and the model inside it, without importing PEFT (the import takes over a second).

A model can only have an adapter if PEFT was imported to add it.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel


def is_adapted(model: nn.Module) -> "TypeGuard[PeftModel]":
    """Whether a model has a PEFT adapter."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def base_model(model: nn.Module) -> nn.Module:
    """The Transformers model inside an adapter, or the model itself."""
    return model.get_base_model() if is_adapted(model) else model


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that the architecture names as those not to be divided among devices, in their order."""
    base = base_model(model)
    names = set(getattr(base, "_no_split_modules", None) or ())
    return [module for module in base.modules() if type(module).__name__ in names]
