"""Tokens on which a model's generation config stops."""

from torch import nn


def declared_stops(model: nn.Module) -> frozenset[int]:
    """The EOS tokens of the generation config.

    Args:
        model: A language model of Transformers.
    """
    declared = model.generation_config.eos_token_id
    return frozenset([declared] if isinstance(declared, int) else declared or ())
