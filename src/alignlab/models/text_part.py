"""Models that read images or sounds too, trained on text alone: which of their parts text never passes."""

import logging
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def modules_beside_text(model: PreTrainedModel) -> list[str]:
    """Names of the outermost modules that text never passes: towers of other inputs, and what projects from them.

    Args:
        model: Without an adapter.

    Returns:
        Names, such as ``model.vision_tower``; none for a model of text alone.
    """
    if model.config.get_text_config() is model.config:
        return []
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    parts = (*parts, getattr(model, "score", None))  # the head of a reward model
    of_text = {id(tensor) for part in parts if part is not None for tensor in part.parameters()}

    def outermost(module: nn.Module, prefix: str = "") -> Iterator[str]:
        for name, child in module.named_children():
            own = {id(tensor) for tensor in child.parameters()}
            if own and own.isdisjoint(of_text):
                yield prefix + name
            elif not own <= of_text:
                yield from outermost(child, f"{prefix}{name}.")

    return list(outermost(model))


def freeze_beside_text(model: PreTrainedModel) -> None:
    """Freeze the modules that text never passes: DDP would wait for their gradients, and a run would report a fault.

    Args:
        model: Without an adapter; changed in place.
    """
    names = modules_beside_text(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    if names:
        log.info("trained on text alone: %s stay as they are", ", ".join(names))
