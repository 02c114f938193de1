"""Muon for the matrices of hidden layers, and AdamW for all other weights, as one optimizer."""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.distributed.tensor import DTensor

from alignlab.errors import InputError
from alignlab.optim.fused import make_fused

Share = Annotated[float, Field(ge=0, lt=1)]


class Muon(torch.optim.Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon) and AdamW (arXiv 1711.05101), both by PyTorch.

    Muon makes the momentum of a matrix nearly orthogonal before it adds it. Its updates are scaled to the usual size of
    AdamW's (arXiv 2502.16982, section 2.2), so that both take the same rate and weight decay.

    Args:
        params: Parameters, or groups of them.
        hidden: The parameters that Muon updates; see ``hidden_matrices``.
        lr: Learning rate.
        betas: Decay of AdamW's averages of gradients and of their squares.
        eps: Added to AdamW's denominator.
        weight_decay: Decoupled from the gradient.
        momentum: Decay of Muon's average of gradients.
        nesterov: Whether Muon looks one step ahead along its momentum.
        ns_steps: Iterations of Newton and Schulz that make a momentum orthogonal.

    Raises:
        InputError: Nothing that is trained is in ``hidden``, or a sharded matrix has fewer rows than ranks.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        hidden: Collection[nn.Parameter],
        lr: Annotated[float, Field(gt=0)],
        betas: tuple[Share, Share],
        eps: Annotated[float, Field(gt=0)],
        weight_decay: Annotated[float, Field(ge=0)],
        momentum: Share,
        nesterov: bool,
        ns_steps: Annotated[int, Field(ge=1, lt=100)],
    ):
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        matrices, others = (list(_part(groups, hidden, inside)) for inside in (True, False))
        if not matrices:
            why = "it is for matrices of hidden layers, and none is trained"
            raise InputError("optimizer=muon", why, "Type optimizer=adamw, or peft=lora or peft=none")
        if any(
            isinstance(p, DTensor) and p.shape[0] < p.device_mesh.size() for group in matrices for p in group["params"]
        ):
            why = "it works on shards of whole rows, and a matrix has fewer rows than there are processes"
            raise InputError("optimizer=muon with strategy=fsdp", why, "Type strategy=ddp, or a larger peft.r")
        shared = {"lr": lr, "weight_decay": weight_decay}
        of_matrices = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        self.parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(matrices, **shared, **of_matrices, adjust_lr_fn="match_rms_adamw")
        }
        if others:
            self.parts["adamw"] = make_fused(partial(torch.optim.AdamW, **shared, betas=betas, eps=eps), others)
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["part"] = name
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all weights.

        Args:
            closure: Computes the loss and the gradients.

        Returns:
            Its result.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for name, part in self.parts.items():  # loading a state replaces groups and state
            part.param_groups = [group for group in self.param_groups if group["part"] == name]
            part.state = self.state
            part.step()
        return loss


def _part(groups: list[dict[str, Any]], hidden: Collection[nn.Parameter], inside: bool) -> Iterator[dict[str, Any]]:
    """The groups with only the parameters that are in ``hidden``, or with only those that are not."""
    for group in groups:
        parameters = [parameter for parameter in group["params"] if (parameter in hidden) is inside]
        if parameters:
            yield {**group, "params": parameters}


def hidden_matrices(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    """Matrices in the blocks that an architecture names as those not to be divided, and of adapters in these blocks.

    Embeddings and heads are not among them.

    Args:
        modules: What is trained.
    """
    parts = [part for module in modules for part in module.modules()]
    names = {name for part in parts for name in getattr(part, "_no_split_modules", None) or ()}
    blocks = [part for part in parts if names & {kind.__name__ for kind in type(part).__mro__}]  # FSDP2 subclasses them
    return {parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2}
