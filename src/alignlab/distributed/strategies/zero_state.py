"""DeepSpeed's training state by parameter name, read from and written to its flat buffers.

ZeRO concatenates the float32 master weights of many parameters and gives each rank a partition, on which the optimizer
works. DeepSpeed's accessors (such as ``deepspeed.utils.safe_get_full_fp32_param``) find a parameter in them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from alignlab.distributed.strategies.state import Stored, carried_names, step_device


class EngineState:
    """Read and write the state of an engine.

    Args:
        engine: DeepSpeed engine of ZeRO stage 1, 2 or 3.
        module: The module that gives the parameter names.
    """

    def __init__(self, engine: Any, module: nn.Module):
        self.engine, self.module = engine, module
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def weight_shards(self) -> dict[str, Tensor]:
        """This rank's shards of the master weights, and full buffers, by name."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters = {name: self._shard(safe_get_full_fp32_param(p), p) for name, p in self.trained.items()}
        carried = carried_names(self.module)
        aliases = {name: tensor for name, tensor in self.module.state_dict(keep_vars=True).items() if name in carried}
        found = {id(p): masters[name] for name, p in self.trained.items()}
        return {name: found[id(t)] if id(t) in found else self._frozen(t) for name, t in aliases.items()}

    def _frozen(self, tensor: Tensor) -> Tensor:
        """A buffer, or this rank's shard of a frozen weight that ZeRO-3 partitioned."""
        from deepspeed import zero

        if not hasattr(tensor, "ds_id"):
            return tensor.detach()
        with zero.GatheredParameters([tensor]):
            return self._shard(tensor, tensor)

    def optimizer_shards(self) -> dict[str, dict[str, Any]]:
        """This rank's shards of the optimizer's state; numbers for all weights are repeated for each parameter."""
        from deepspeed.utils import safe_get_full_optimizer_state

        keys, numbers = self._keys()
        self._link()
        return {
            name: {key: self._shard(safe_get_full_optimizer_state(p, key), p) for key in keys} | numbers
            for name, p in self.trained.items()
        }

    def fill(self, stored: Stored) -> None:
        """Copy a stored state tensor by tensor, with one full tensor in memory at a time."""
        self._create_entries(stored)
        done: set[int] = set()
        aliases = self.module.state_dict(keep_vars=True)
        for name in stored.weights:
            parameter = aliases[name]
            if id(parameter) not in done:
                self._set_weight(parameter, stored.tensor(f"weights/{name}"))
            done.add(id(parameter))
        for name, parameter in self.trained.items():
            for key in self._keys()[0]:
                self._set(parameter, stored.tensor(f"optimizer/{name}/{key}"), key)

    def _shard(self, whole: Tensor, parameter: nn.Parameter) -> DTensor:
        """This rank's shard along the first axis, on the CPU."""
        whole = whole.detach().reshape(getattr(parameter, "ds_shape", parameter.shape))
        size, rank = -(-whole.shape[0] // self.mesh.size()), self.mesh.get_local_rank()
        local = whole[rank * size : (rank + 1) * size].cpu().clone()
        shape, stride = whole.shape, whole.contiguous().stride()
        return DTensor.from_local(local, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def _buffers(self) -> Iterator[nn.Parameter]:
        """This rank's flat partitions, on which the optimizer works."""
        optimizer = self.engine.optimizer
        stage_3 = getattr(optimizer, "fp32_partitioned_groups_flat", None)
        yield from optimizer.single_partition_of_fp32_groups if stage_3 is None else stage_3

    def _keys(self) -> tuple[list[str], dict[str, Any]]:
        """Keys of the optimizer's state with an element per weight, and the other entries."""
        buffer = next(self._buffers())
        state = self.engine.optimizer.optimizer.state[buffer]
        per_weight = [key for key, value in state.items() if _per_weight(value, buffer)]
        return per_weight, {key: value for key, value in state.items() if key not in per_weight}

    def _create_entries(self, stored: Stored) -> None:
        """Create the entries of every flat partition that the optimizer would create in its first step."""
        name = next(iter(self.trained))
        shape = tuple(getattr(self.trained[name], "ds_shape", self.trained[name].shape))
        optimizer = self.engine.optimizer.optimizer
        for buffer in self._buffers():
            state, device = optimizer.state[buffer], step_device(optimizer.param_groups[0], buffer)
            for key, stored_shape in stored.optimizer_shapes(name).items():
                per_weight = stored_shape == shape
                whole = torch.zeros_like(buffer) if per_weight else stored.tensor(f"optimizer/{name}/{key}").clone()
                state[key] = whole if per_weight else whole.to(device)
        self._link()

    def _link(self) -> None:
        """Link parameters to their entries, which ZeRO-1 and 2 do after the step of the first group, for all groups."""
        optimizer = self.engine.optimizer
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _set_weight(self, parameter: Tensor, whole: Tensor) -> None:
        """Set the master weight, and the weight that the engine computes with."""
        from deepspeed import zero

        if parameter.requires_grad:
            self._set(parameter, whole, None)
        gathered = [parameter] if hasattr(parameter, "ds_id") else []
        with torch.no_grad(), zero.GatheredParameters(gathered, modifier_rank=0, enabled=bool(gathered)):
            parameter.copy_(whole)

    def _set(self, parameter: nn.Parameter, whole: Tensor, key: str | None) -> None:
        """Set this rank's partition of a master weight (no key) or of the optimizer's state."""
        if not hasattr(parameter, "ds_id"):
            parameter.set_full_hp_param(whole.to(parameter.device), key)
            return
        size = parameter.ds_tensor.numel()
        padded = whole.new_zeros(size * dist.get_world_size())
        padded[: whole.numel()] = whole.flatten()
        partition = padded.narrow(0, size * dist.get_rank(), size)
        parameter._z3_optimizer.set_local_hp_param(partition, parameter, key)


def _per_weight(value: Any, buffer: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == buffer.shape and value.ndim > 0
