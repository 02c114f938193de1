"""Check the arguments of a node against the signature of its ``_target_``: names, types and ranges."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from alignlab.config.outline import outline
from alignlab.config.schema.values import Findings, check_names, check_value
from alignlab.config.signatures import VARIADIC, call_chain, hints, is_open, parameters
from alignlab.config.sources import Read
from alignlab.config.target import CONTROL, checked_target, locate
from alignlab.errors import InputError

PARTS = {"peft": {"quantization"}}
"""Nodes inside another node that are not arguments of its target; ``assemble`` uses them."""

FORWARDS = {
    "transformers.BitsAndBytesConfig": None,
    "lightning.pytorch.loggers.WandbLogger": "wandb.init",
    "lightning.pytorch.loggers.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
}
"""The callable that receives the ``**kwargs`` of a target; None if it accepts no other names. Others accept any."""

GIVEN_BY_RUN = {
    "method": {"factories", "sampler"},
    "optimizer": {"params", "hidden"},
    "scheduler": {"optimizer", "num_training_steps"},
    "trainer": {
        *("strategy", "logger", "callbacks", "default_root_dir", "use_distributed_sampler", "enable_progress_bar"),
        *("enable_checkpointing", "gradient_clip_algorithm", "overfit_batches", "limit_train_batches"),
        *("min_steps", "min_epochs", "reload_dataloaders_every_n_epochs"),
    },
    "logger": {"run_folder"},
}
"""Arguments, by group, that a config cannot set: the run passes them, or they have groups of their own."""

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
"""Types with ranges by argument name, for classes of other libraries, whose annotations have no ranges."""


def check_nodes(path: str, tree: Any, findings: Findings, parent: Any = None, argument: str = "") -> None:
    """Check all nodes with ``_target_`` in a plain config.

    Args:
        path: Dotted key of the config.
        tree: Plain containers and values.
        findings: Collects the errors.
        parent: Class or function of the enclosing node, if there is one.
        argument: Argument of ``parent`` that contains the config.
    """
    if isinstance(tree, list):
        tree = {str(index): value for index, value in enumerate(tree)}
    if not isinstance(tree, Mapping):
        return
    if "_target_" not in tree:
        for key, value in tree.items():
            check_nodes(f"{path}.{key}", value, findings, parent, argument or str(key))
        return
    try:
        target = checked_target(path, tree, parent, argument)
    except InputError as error:
        findings.errors.append(error)
        return
    check_arguments(path, tree["_target_"], target, tree, findings)


def check_arguments(
    path: str, name: str, target: Callable[..., Any], node: Mapping[str, Any], findings: Findings
) -> None:
    """Check the arguments of a target, and nested nodes.

    Args:
        path: Dotted key of the node.
        name: Dotted path of the target.
        target: Class or function.
        node: Its arguments.
        findings: Collects the errors.
    """
    for key, value in _inside(node).items():
        check_nodes(f"{path}.{key}", value, findings, target, str(key))
    arguments = _check_argument_names(path, node, _names(name, target), findings)
    given = _given_by_run(path)
    for function in call_chain(target):
        for key, parameter in parameters(function).items():
            value = arguments.get(key, parameter.default)
            if key not in given and value != parameter.default and not _holds_target(value):
                check_value(f"{path}.{key}", value, _hint(name, function, key), findings)


def check_spelling(path: str, tree: Any, findings: Findings) -> None:
    """Check only the names of the arguments of all nodes, as far as their sources tell, without importing anything.

    Args:
        path: Dotted key of the config.
        tree: Plain containers and values.
        findings: Collects names that do not exist.

    Raises:
        Unclear: A source does not tell.
    """
    if isinstance(tree, list):
        tree = {str(index): value for index, value in enumerate(tree)}
    if not isinstance(tree, Mapping):
        return
    for key, value in _inside(tree).items():
        check_spelling(f"{path}.{key}", value, findings)
    if "_target_" in tree:
        name = str(tree["_target_"])
        _check_argument_names(path, tree, _names(name, outline(name), outline), findings)


def _inside(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in CONTROL}


def _given_by_run(path: str) -> set[str]:
    return GIVEN_BY_RUN.get(path.split(".")[0], set())


def _check_argument_names(
    path: str, node: Mapping[str, Any], names: set[str] | None, findings: Findings
) -> dict[str, Any]:
    """Check the names of a node's arguments, and return the arguments."""
    arguments = {key: value for key, value in _inside(node).items() if key not in PARTS.get(path, set())}
    check_names(path, arguments, names if names is None else names - _given_by_run(path), findings)
    return arguments


def _names(name: str, target: Callable[..., Any], read: Read = locate) -> set[str] | None:
    """Names of the arguments that a target accepts; None for any name."""
    functions = call_chain(target)
    named = {key for function in functions for key, p in parameters(function).items() if p.kind not in VARIADIC}
    if not is_open(functions[-1]):
        return named
    if name not in FORWARDS:
        return None
    return named | (parameters(read(FORWARDS[name])).keys() if FORWARDS[name] else set())


def _hint(name: str, function: Callable[..., Any], key: str) -> Any:
    if not name.startswith("alignlab.") and key in RANGES:
        return RANGES[key]
    return hints(function).get(key, Any)


def _holds_target(value: Any) -> bool:
    """Whether a value contains nodes, which are checked instead of its type."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_holds_target, value.values()))
    return isinstance(value, list) and any(map(_holds_target, value))
