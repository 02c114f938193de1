"""A node with ``_target_`` against the signature of what it names: the names, types and ranges of its arguments."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from alignlab.config.build import CONTROL, fitting, locate
from alignlab.config.schema.values import Findings, check_names, check_value
from alignlab.config.signatures import VARIADIC, chain, hints, is_open, parameters
from alignlab.errors import InputError

PARTS = {"peft": {"quantization"}}
"""Nodes that stand inside another one for the house's use, not as an argument of its target."""

FORWARDS = {
    "transformers.BitsAndBytesConfig": None,
    "lightning.pytorch.loggers.WandbLogger": "wandb.init",
    "lightning.pytorch.loggers.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
}
"""Where the ``**kwargs`` of a target go: on to another callable, or nowhere (None). With others any name goes."""

GIVEN_BY_RUN = {
    "method": {"factories", "sampler"},
    "optimizer": {"params"},
    "scheduler": {"optimizer", "num_training_steps"},
    "trainer": {
        *("strategy", "logger", "callbacks", "default_root_dir", "use_distributed_sampler", "enable_progress_bar"),
        *("enable_checkpointing", "gradient_clip_algorithm", "overfit_batches", "limit_train_batches"),
        *("min_steps", "min_epochs", "reload_dataloaders_every_n_epochs"),
    },
    "logger": {"run_folder"},
}
"""Arguments, by group, that are not for its nodes to give: live objects, and what groups of their own are for."""

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]

RANGES: dict[str, Any] = {
    "lr": Positive,
    "weight_decay": Annotated[float, Field(ge=0)],
    "momentum": Share,
    "betas": tuple[Share, Share],
    "r": Count,
    "lora_alpha": Positive,
    "lora_dropout": Share,
    "num_virtual_tokens": Count,
    "adapter_len": Count,
    "adapter_layers": Count,
    "devices": Count | Literal[-1] | str | list[int],
    "num_nodes": Count,
    "max_steps": Annotated[int, Field(ge=-1)],
    "max_epochs": Annotated[int, Field(ge=-1)] | None,
    "gradient_clip_val": Positive | None,
    "log_every_n_steps": Count,
    "patience": Annotated[int, Field(ge=0)],
}
"""Types with ranges, by argument, for classes that are not ours and whose annotations give none."""


def check_nodes(path: str, tree: Any, findings: Findings, around: Any = None, argument: str = "") -> None:
    """Check every node with ``_target_`` in a plain tree.

    Args:
        path: Dotted key of the tree.
        tree: Plain containers and leaves.
        findings: What is added to.
        around: Class or function of the node that the tree lies in, if any.
        argument: Of that, the argument that the tree lies in.
    """
    if isinstance(tree, list):
        tree = {str(index): value for index, value in enumerate(tree)}
    if not isinstance(tree, Mapping):
        return
    if "_target_" not in tree:
        for key, value in tree.items():
            check_nodes(f"{path}.{key}", value, findings, around, argument or str(key))
        return
    try:
        target = fitting(path, tree, around, argument)
    except InputError as error:
        findings.errors.append(error)
        return
    check_arguments(path, tree["_target_"], target, tree, findings)


def check_arguments(
    path: str, name: str, target: Callable[..., Any], node: Mapping[str, Any], findings: Findings
) -> None:
    """Check what a target is called with, and the nodes within.

    Args:
        path: Dotted key of the node.
        name: Dotted path of the target.
        target: Class or function.
        node: Its arguments.
        findings: What is added to.
    """
    inside = {key: value for key, value in node.items() if key not in CONTROL}
    for key, value in inside.items():
        check_nodes(f"{path}.{key}", value, findings, target, str(key))
    arguments = {key: value for key, value in inside.items() if key not in PARTS.get(path, set())}
    names = _names(name, target)
    given = GIVEN_BY_RUN.get(path.split(".")[0], set())
    check_names(path, arguments, names if names is None else names - given, findings)
    for function in chain(target):
        for key, parameter in parameters(function).items():
            value = arguments.get(key, parameter.default)
            if key not in given and value != parameter.default and not _holds_target(value):
                check_value(f"{path}.{key}", value, _hint(name, function, key), findings)


def _names(name: str, target: Callable[..., Any]) -> set[str] | None:
    """Names that a target takes; None: any."""
    functions = chain(target)
    named = {key for function in functions for key, p in parameters(function).items() if p.kind not in VARIADIC}
    if not is_open(functions[-1]):
        return named
    if name not in FORWARDS:
        return None
    return named | (parameters(locate(FORWARDS[name])).keys() if FORWARDS[name] else set())


def _hint(name: str, function: Callable[..., Any], key: str) -> Any:
    if not name.startswith("alignlab.") and key in RANGES:
        return RANGES[key]
    return hints(function).get(key, Any)


def _holds_target(value: Any) -> bool:
    """Whether objects are made within the value: their own nodes are checked instead of its type."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_holds_target, value.values()))
    return isinstance(value, list) and any(map(_holds_target, value))
