"""DeepSpeed's training state by parameter name, out of and into its flat buffers.

ZeRO lays the float32 masters of many parameters end to end and gives each rank a piece; the optimizer works on these
pieces. DeepSpeed's accessors (``deepspeed.utils.safe_get_full_fp32_param`` and the like) find a parameter in them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from alignlab.distributed.strategies.state import Stored, carried_names


class EngineState:
    """Reads and writes the state of an engine.

    Args:
        engine: DeepSpeed's, of stage 1, 2 or 3.
        module: The module whose names count.
    """

    def __init__(self, engine: Any, module: nn.Module):
        self.engine, self.module = engine, module
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def weight_shares(self) -> dict[str, Tensor]:
        """Shares of the masters, and whole buffers."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters = {name: self._share(safe_get_full_fp32_param(p), p) for name, p in self.trained.items()}
        carried = carried_names(self.module)
        aliases = {name: tensor for name, tensor in self.module.state_dict(keep_vars=True).items() if name in carried}
        found = {id(p): masters[name] for name, p in self.trained.items()}
        return {name: found[id(t)] if id(t) in found else self._frozen(t) for name, t in aliases.items()}

    def _frozen(self, tensor: Tensor) -> Tensor:
        """A buffer, or this rank's share of a frozen weight that ZeRO-3 partitioned."""
        from deepspeed import zero

        if not hasattr(tensor, "ds_id"):
            return tensor.detach()
        with zero.GatheredParameters([tensor]):
            return self._share(tensor, tensor)

    def optimizer_shares(self) -> dict[str, dict[str, Any]]:
        """Shares of what has an entry per weight; what has one entry in all is kept for each parameter."""
        from deepspeed.utils import safe_get_full_optimizer_state

        keys, numbers = self._keys()
        self._link()
        return {
            name: {key: self._share(safe_get_full_optimizer_state(p, key), p) for key in keys} | numbers
            for name, p in self.trained.items()
        }

    def fill(self, stored: Stored) -> None:
        """Copy a stored state tensor by tensor; no more than one is held whole."""
        self._make_room(stored)
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

    def _share(self, whole: Tensor, parameter: nn.Parameter) -> DTensor:
        """This rank's share along the first axis, on the CPU."""
        whole = whole.detach().reshape(getattr(parameter, "ds_shape", parameter.shape))
        size, rank = -(-whole.shape[0] // self.mesh.size()), self.mesh.get_local_rank()
        local = whole[rank * size : (rank + 1) * size].cpu().clone()
        shape, stride = whole.shape, whole.contiguous().stride()
        return DTensor.from_local(local, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def _buffers(self) -> Iterator[nn.Parameter]:
        """The flat pieces of this rank that the optimizer works on."""
        optimizer = self.engine.optimizer
        stage_3 = getattr(optimizer, "fp32_partitioned_groups_flat", None)
        yield from optimizer.single_partition_of_fp32_groups if stage_3 is None else stage_3

    def _keys(self) -> tuple[list[str], dict[str, Any]]:
        """Names of what has an entry per weight, and what has one entry in all."""
        buffer = next(self._buffers())
        state = self.engine.optimizer.optimizer.state[buffer]
        per_weight = [key for key, value in state.items() if _per_weight(value, buffer)]
        return per_weight, {key: value for key, value in state.items() if key not in per_weight}

    def _make_room(self, stored: Stored) -> None:
        """Give every flat piece the entries that the optimizer would have made in its first step."""
        name = next(iter(self.trained))
        shape = tuple(getattr(self.trained[name], "ds_shape", self.trained[name].shape))
        for buffer in self._buffers():
            state = self.engine.optimizer.optimizer.state[buffer]
            for key in stored.optimizer_keys(name):
                full = f"optimizer/{name}/{key}"
                per_weight = stored.shapes[full] == shape
                state[key] = torch.zeros_like(buffer) if per_weight else stored.tensor(full).clone()
        self._link()

    def _link(self) -> None:
        """Let parameters find their entries: ZeRO-1 and 2 do so after the step of the first group, for all groups."""
        optimizer = self.engine.optimizer
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _set_weight(self, parameter: Tensor, whole: Tensor) -> None:
        """The master, and the weight that the engine computes with."""
        from deepspeed import zero

        if parameter.requires_grad:
            self._set(parameter, whole, None)
        gathered = [parameter] if hasattr(parameter, "ds_id") else []
        with torch.no_grad(), zero.GatheredParameters(gathered, modifier_rank=0, enabled=bool(gathered)):
            parameter.copy_(whole)

    def _set(self, parameter: nn.Parameter, whole: Tensor, key: str | None) -> None:
        """Set this rank's piece of a master (no key) or of the optimizer's state."""
        if not hasattr(parameter, "ds_id"):
            parameter.set_full_hp_param(whole.to(parameter.device), key)
            return
        size = parameter.ds_tensor.numel()
        padded = whole.new_zeros(size * dist.get_world_size())
        padded[: whole.numel()] = whole.flatten()
        piece = padded.narrow(0, size * dist.get_rank(), size)
        parameter._z3_optimizer.set_local_hp_param(piece, parameter, key)


def _per_weight(value: Any, buffer: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == buffer.shape and value.ndim > 0
