"""The training state by parameter name, so that a run can resume with another strategy.

Strategies that shard write a folder with PyTorch's distributed checkpoint: every rank writes its shards, each tensor is
stored under ``weights/NAME`` or ``optimizer/NAME/KEY`` in its full shape, and everything else in ``rest.pt``. The other
strategies write Lightning's single file, with the names of the optimizer's parameters, which PyTorch numbers.
``Stored`` opens both.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from alignlab.distributed.strategies.reader import Reader
from alignlab.errors import InputError

REST = "rest.pt"
NAMES = "parameter_names"
"""Entry of a single file: names of the optimizer's parameters, in the order of PyTorch's indices."""


class Stored:
    """An opened checkpoint.

    Args:
        path: Folder or file of the checkpoint.

    Attributes:
        rest: Everything except weights and optimizer: loops, callbacks, schedules.
        groups: Parameter groups of the optimizer, with names in ``params``.
        shapes: Full shape of each tensor by its key.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        file = self.path / REST if self.path.is_dir() else self.path
        self.rest: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        self._tensors: dict[str, Tensor] = {}
        if self.path.is_dir():
            metadata = Reader(self.path).read_metadata().state_dict_metadata
            self.shapes = {key: tuple(entry.size) for key, entry in metadata.items()}
            self.groups = self.rest.pop("optimizer_groups")
        else:
            weights, (optimizer,) = self.rest.pop("state_dict"), self.rest.pop("optimizer_states")
            named, self.groups = by_name(optimizer, self.rest.pop(NAMES))
            self._tensors = flat(weights, named)
            self.shapes = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}

    @property
    def weights(self) -> list[str]:
        """Names of the weights and buffers."""
        return [key.partition("/")[2] for key in self.shapes if key.startswith("weights/")]

    def optimizer_keys(self, name: str) -> list[str]:
        """Keys of the optimizer's state of a parameter."""
        return [key.rpartition("/")[2] for key in self.shapes if key.rpartition("/")[0] == f"optimizer/{name}"]

    def optimizer_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Full shapes of the optimizer's state of a parameter, by key."""
        return {key: self.shapes[f"optimizer/{name}/{key}"] for key in self.optimizer_keys(name)}

    def fill(self, targets: dict[str, Tensor]) -> None:
        """Copy stored tensors into targets. All ranks must call this with their shards.

        Args:
            targets: Tensors by key, in their full shape or as shards (``DTensor``).
        """
        if self.path.is_dir():
            dcp.load(targets, storage_reader=Reader(self.path))
            return
        for key, target in targets.items():
            copy_shard(target, self._tensors[key])

    def tensor(self, key: str) -> Tensor:
        """Read one full tensor, independently of the other ranks."""
        if not self.path.is_dir():
            return self._tensors[key]
        whole = torch.empty(self.shapes[key], dtype=self._dtype(key))
        dcp.load({key: whole}, storage_reader=Reader(self.path), no_dist=True)
        return whole

    def _dtype(self, key: str) -> torch.dtype:
        return Reader(self.path).read_metadata().state_dict_metadata[key].properties.dtype


def copy_shard(target: Tensor, whole: Tensor) -> None:
    """Copy into a tensor, or into this rank's shard of it.

    Args:
        target: The tensor or a ``DTensor``.
        whole: The full tensor, of the target's full shape.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        whole = distribute_tensor(
            whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        ).to_local()
        target = target.to_local()
    target.copy_(whole)


def flat(weights: Mapping[str, Tensor], optimizer: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Weights and optimizer state by their keys in a checkpoint; numbers become tensors of shape ``[]``."""
    state = {
        f"optimizer/{name}/{key}": torch.as_tensor(value)
        for name, entries in optimizer.items()
        for key, value in entries.items()
    }
    return {f"weights/{name}": tensor for name, tensor in weights.items()} | state


def by_name(state: Mapping[str, Any], names: list[str]) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Replace indices by names in an optimizer's state dict.

    Args:
        state: State dict of a PyTorch optimizer.
        names: Names of the parameters, by index.

    Returns:
        State by name, and the parameter groups.
    """
    groups = [{**group, "params": [names[index] for index in group["params"]]} for group in state["param_groups"]]
    return {names[index]: dict(entries) for index, entries in state["state"].items()}, groups


def by_number(stored: Stored) -> dict[str, Any]:
    """The state dict of a PyTorch optimizer, with indices instead of names; the inverse of ``by_name``."""
    names = [name for group in stored.groups for name in group["params"]]
    indices = {name: index for index, name in enumerate(names)}
    groups = [{**group, "params": [indices[name] for name in group["params"]]} for group in stored.groups]
    state = {
        indices[name]: {key: stored.tensor(f"optimizer/{name}/{key}") for key in stored.optimizer_keys(name)}
        for name in names
    }
    return {"state": {index: entries for index, entries in state.items() if entries}, "param_groups": groups}


def names_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[list[str]]:
    """Names of an optimizer's parameters, by group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def step_device(group: Mapping[str, Any], weight: Tensor) -> torch.device:
    """Where PyTorch keeps the number of steps of a weight: with it if the optimizer is fused, else on the CPU."""
    return weight.device if group.get("fused") else torch.device("cpu")


def carried_names(module: nn.Module) -> set[str]:
    """Names of the state dict that a checkpoint must hold.

    These are trainable parameters, persistent buffers, and further parameters that the module names (``carries``).
    """
    carries = getattr(module, "carries", lambda name: False)
    weights = module.named_parameters(remove_duplicate=False)
    trainable = {name for name, weight in weights if weight.requires_grad or carries(name)}
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return (trainable | buffers) & module.state_dict().keys()


def check_complete(module: nn.Module, found: Iterable[str]) -> None:
    """Refuse a checkpoint of another model or adapter.

    Raises:
        InputError: The checkpoint lacks a trainable weight, or has one that is not in the model.
    """
    found = set(found)
    missing, unknown = sorted(carried_names(module) - found), sorted(found - module.state_dict().keys())
    if missing or unknown:
        faults = [f"{len(missing)} trainable weights are not in it (first: {missing[0]})"] if missing else []
        faults += [f"{len(unknown)} of its weights are not in the model (first: {unknown[0]})"] if unknown else []
        instead = (
            "resume with model, peft and precision of the run (its config.yaml), or start a new run with init_from="
        )
        raise InputError("resuming from this checkpoint", " and ".join(faults), instead)


class AnyState(TorchCheckpointIO):
    """Lightning's reader of single files, extended to the folders of strategies that shard."""

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        if not Path(path).is_dir():
            return super().load_checkpoint(path, map_location, weights_only)
        stored = Stored(path)
        weights = {name: stored.tensor(f"weights/{name}") for name in stored.weights}
        return {**stored.rest, "state_dict": weights, "optimizer_states": [by_number(stored)]}


class NamedState(Strategy):
    """Save and load the state of strategies that shard, by name.

    To save, a strategy implements ``weight_shards``, ``optimizer_shards`` and ``optimizer_groups``; to load, ``fill``.
    """

    restore_checkpoint_after_setup = True
    lightning_restore_optimizer = False

    def weight_shards(self) -> dict[str, Tensor]:
        """This rank's shards of the weights and buffers that a checkpoint must hold, by name."""
        raise NotImplementedError

    def optimizer_shards(self) -> dict[str, dict[str, Any]]:
        """This rank's shards of the optimizer's state, by parameter name."""
        raise NotImplementedError

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parameter groups with plain values, and names in ``params``."""
        raise NotImplementedError

    def fill(self, stored: Stored) -> None:
        """Load weights, optimizer state and the settings of its groups."""
        raise NotImplementedError

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}  # save_checkpoint writes the shards

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return {}  # save_checkpoint writes the shards

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the folder. All ranks must call this."""
        path = Path(self.broadcast(filepath))
        dcp.save(flat(self.weight_shards(), self.optimizer_shards()), checkpoint_id=path)
        if self.is_global_zero:
            rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
            torch.save({**rest, "optimizer_groups": self.optimizer_groups()}, path / REST)
        dist.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load this rank's shards. All ranks must call this."""
        stored = Stored(checkpoint_path)
        check_complete(self.lightning_module, stored.weights)
        self.fill(stored)
        return stored.rest

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Do nothing: ``load_checkpoint`` has loaded the weights."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Do nothing: ``load_checkpoint`` has loaded the optimizer's state."""
