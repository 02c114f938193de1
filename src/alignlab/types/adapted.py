"""What a model is under its adapter, asked without importing PEFT, which costs every process over a second.

A model carries an adapter only where something imported PEFT to put it there.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel


def is_adapted(model: nn.Module) -> "TypeGuard[PeftModel]":
    """Whether a model carries an adapter of PEFT."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def base_model(model: nn.Module) -> nn.Module:
    """The Transformers model inside an adapter, or the model itself."""
    return model.get_base_model() if is_adapted(model) else model
