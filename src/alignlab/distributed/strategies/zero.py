"""DeepSpeed's ZeRO (arXiv 1910.02054), with offload to the host (2101.06840) and to disks (2104.07857), on any device.

1. A model is built in full and then partitioned tensor by tensor. With DeepSpeed's partitioning during construction,
   initialisation code and adapters would get empty tensors, and the weights would differ from other strategies.
2. alignlab accumulates gradients and divides by the step's counts; DeepSpeed's own accumulation count is always 1.
3. Each micro-batch goes through the engine's forward, which resets the engine's record of a backward. Without it, later
   micro-batches would overwrite the gradient of earlier ones.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Annotated, Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from pydantic import Field
from torch import Tensor, nn

from alignlab.distributed.strategies.accelerator import prefer_cpu_without_cuda
from alignlab.distributed.strategies.base import Result, Sharding, StaysOnDevice, full_shape, moves_weights, tensors_of
from alignlab.distributed.strategies.compiled_ops import remove_dead_locks
from alignlab.distributed.strategies.state import NamedState, Stored, names_of
from alignlab.distributed.strategies.zero_state import EngineState
from alignlab.types.adapted import is_adapted

NARROW = (torch.bfloat16, torch.float16)


class Partitioned(Sharding):
    """Access to weights and gradients through DeepSpeed's engine."""

    strategy: "DeepSpeed"

    def shard(self, policy: nn.Module) -> nn.Module:
        """ZeRO-3: partition tensor by tensor. Other stages keep full weights on every rank."""
        if not self.strategy.zero_stage_3:
            return policy
        from deepspeed import zero

        self.strategy.keep_exact(policy)
        self.strategy.cast(policy)
        zero.Init(module=policy, config_dict_or_path=self.strategy.config)
        for buffer in policy.buffers():  # Init moves the parameters only, and the engine then moves nothing
            buffer.data = buffer.data.to(self.strategy.root_device)
        return policy

    def shard_beside(self, model: nn.Module, trained: bool = False) -> nn.Module:
        return self.shard(model)  # it is part of the policy's engine, whose hooks gather it

    def float32_copies(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        return [self._float32_copy(parameter) for parameter in parameters]

    def _float32_copy(self, parameter: nn.Parameter) -> nn.Parameter:
        """Gather one parameter at a time; partition its copy if it is partitioned itself."""
        made = nn.Parameter(self.value(parameter).float(), requires_grad=False)
        if hasattr(parameter, "ds_id"):
            from deepspeed import zero

            zero.Init(module=nn.ParameterList([made]), config_dict_or_path=self.strategy.config)
        return made

    def forward(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function as the forward of the engine's module."""
        engine, module = self.strategy.model, self.strategy.lightning_module
        kept: list[Result] = []
        module.forward = lambda: kept.append(function(*arguments)) or tensors_of(kept[0])
        try:
            engine()
        finally:
            del module.forward
        return kept[0]

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.strategy.model.set_gradient_accumulation_boundary(last)
        yield

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)

    def value(self, parameter: nn.Parameter) -> Tensor:
        with self._gathered([parameter]):
            return parameter.detach().clone()

    def update(self, optimizer: Any, parameters: list[nn.Parameter], limit: float | None, skipped: bool) -> Tensor:
        """Let the engine clip and step; it skips non-finite gradients."""
        engine = self.strategy.model
        engine.optimizer.clip_grad, self.strategy.skipped = limit or 0.0, skipped
        optimizer.step()
        optimizer.zero_grad()
        return torch.as_tensor(engine.get_global_grad_norm())

    @contextmanager
    def whole(self, policy: nn.Module) -> Iterator[None]:
        if not self.strategy.zero_stage_3:
            yield
            return
        from deepspeed.runtime.zero import unwrap_model_for_generation

        with unwrap_model_for_generation(self.strategy.model):
            yield

    def full_state_dict(self, policy: nn.Module) -> Mapping[str, Tensor] | None:
        if not self.strategy.zero_stage_3:
            return None
        shapes = {name: tensor for name, tensor in policy.state_dict(keep_vars=True).items()}
        return {name: self._on_cpu(tensor) for name, tensor in shapes.items()}

    def master_state_dict(self, policy: nn.Module) -> Mapping[str, Tensor] | None:
        """The engine computes with 16-bit weights in mixed precision, and updates float32 ones."""
        tensors = policy.state_dict(keep_vars=True)
        if not any(tensor.requires_grad and tensor.dtype in NARROW for tensor in tensors.values()):
            return self.full_state_dict(policy)
        weights = {name: self._master(tensor) for name, tensor in tensors.items()}
        if is_adapted(policy):  # the frozen weights are not written
            return weights
        return {name: tensor.float() if tensor.dtype in NARROW else tensor for name, tensor in weights.items()}

    def _master(self, tensor: Tensor) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        if not tensor.requires_grad:
            return self._on_cpu(tensor)
        whole = safe_get_full_fp32_param(tensor).detach().reshape(full_shape(tensor))
        return whole.cpu().clone() if self.strategy.is_global_zero else whole.new_empty(0)

    def _on_cpu(self, tensor: Tensor) -> Tensor:
        with self._gathered([tensor]):
            return tensor.detach().cpu().clone() if self.strategy.is_global_zero else tensor.new_empty(0)

    def _gathered(self, tensors: list[Tensor]) -> Any:
        from deepspeed import zero

        partitioned = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
        return zero.GatheredParameters(partitioned) if partitioned else nullcontext()


class DeepSpeed(NamedState, DeepSpeedStrategy, StaysOnDevice):
    """Lightning's strategy, extended to CPUs and to models that are partitioned after they are built.

    Training and validation steps are called directly; their micro-batches go through the engine.
    """

    sharding = Partitioned

    skipped = False
    """Whether to skip the optimizer in the current step."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._exact: dict[nn.Parameter, Tensor] = {}

    def setup_environment(self) -> None:
        if self.root_device.type == "cpu":
            _use_cpu()
        super(DDPStrategy, self).setup_environment()
        self.setup_distributed()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        # DeepSpeed needs a device with an index.
        device = super().root_device
        return torch.device("cpu", self.local_rank) if device.type == "cpu" else device

    def model_sharded_context(self) -> Any:
        """Return an empty context: models are built in full, see point 1 of the module's docstring."""
        self._init_config_if_needed()
        return nullcontext()

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        with self.precision_plugin.train_step_context():
            return self.lightning_module.training_step(*arguments, **options)

    def validation_step(self, *arguments: Any, **options: Any) -> Any:
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*arguments, **options)

    def _init_optimizers(self) -> Any:
        """Record the names of the parameters before DeepSpeed replaces them by flat buffers."""
        optimizer, scheduler = super()._init_optimizers()
        self.group_names = names_of(optimizer, self.lightning_module)
        return optimizer, scheduler

    def _setup_model_and_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """Avoid copies of float32 shards, and skip the inner optimizer for skipped steps and zero gradients."""
        if not self.zero_stage_3:
            self.keep_exact(self.lightning_module)
        engine, optimizer = super()._setup_model_and_optimizer(*arguments, **options)
        _alias_masters(optimizer)
        self._set_exact()
        inner, step = optimizer.optimizer, optimizer.optimizer.step

        def step_if_it_moves(*arguments: Any, **options: Any) -> Any:
            # The engine has computed the norm here, and copies the master weights afterwards in any case.
            if not self.skipped and moves_weights(torch.as_tensor(optimizer._global_grad_norm)):
                return step(*arguments, **options)
            return None

        inner.step = step_if_it_moves
        return engine, optimizer

    def weight_shards(self) -> dict[str, Tensor]:
        return EngineState(self.model, self.lightning_module).weight_shards()

    def optimizer_shards(self) -> dict[str, dict[str, Any]]:
        return EngineState(self.model, self.lightning_module).optimizer_shards()

    def optimizer_groups(self) -> list[dict[str, Any]]:
        groups = self.model.optimizer.param_groups
        return [{**group, "params": of} for group, of in zip(groups, self.group_names, strict=True)]

    def fill(self, stored: Stored) -> None:
        EngineState(self.model, self.lightning_module).fill(stored)
        for group, settings in zip(self.model.optimizer.param_groups, stored.groups, strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})

    @property
    def narrow_dtype(self) -> torch.dtype | None:
        """The dtype of the engine's computation in mixed precision."""
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return next((dtype for key, dtype in dtypes.items() if self.config.get(key, {}).get("enabled")), None)

    def cast(self, policy: nn.Module) -> None:
        """Cast the weights to the dtype of the engine's computation; it keeps float32 master weights."""
        for parameter in policy.parameters():
            if self.narrow_dtype and parameter.is_floating_point():
                parameter.data = parameter.data.to(self.narrow_dtype)

    def keep_exact(self, module: nn.Module) -> None:
        """Keep trained weights that the cast would round: the engine makes its master weights of the rounded ones.

        Only this rank's partition is kept with ZeRO-3, the whole weight else; both on the CPU.
        """
        for parameter in module.parameters() if self.narrow_dtype else ():
            exact = parameter.detach()
            if not parameter.requires_grad or torch.equal(exact, exact.to(self.narrow_dtype).to(exact.dtype)):
                continue
            self._exact[parameter] = (_partition(exact) if self.zero_stage_3 else exact).float().cpu()

    def _set_exact(self) -> None:
        """Set the master weights to those that were kept."""
        for parameter, exact in self._exact.items():
            if self.zero_stage_3:
                parameter._z3_optimizer.set_local_hp_param(exact, parameter)
            else:
                parameter.set_full_hp_param(exact.to(parameter.device), None)
        self._exact.clear()


def _partition(whole: Tensor) -> Tensor:
    """This rank's part of a weight as ZeRO-3 divides it: flat, in equal sizes, padded with zeros."""
    size, rank = -(-whole.numel() // dist.get_world_size()), dist.get_rank()
    part = whole.new_zeros(size)
    found = whole.flatten()[rank * size : (rank + 1) * size]
    part[: found.numel()] = found
    return part


def _alias_masters(optimizer: Any) -> None:
    """Use float32 shards of ZeRO-3 as their own master weights.

    DeepSpeed intends to, but compares a device with a device's name, which are never equal, and makes copies.
    """
    if getattr(optimizer, "offload_optimizer", True):  # the master weights are on the host, or it is another stage
        return
    pairs = zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True)
    for master, shard in pairs:
        if shard is not None and (master.dtype, master.device) == (shard.dtype, shard.device):
            master.data = shard


def _use_cpu() -> None:
    """Make DeepSpeed compute on the CPU, also on a machine with GPUs."""
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())


def has_asynchronous_io() -> bool:
    """Whether DeepSpeed's asynchronous disk I/O can be built on this machine."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def deepspeed_z1(
    *, timeout_seconds: Annotated[float, Field(gt=0)], config: dict[str, Any], config_file: str | None
) -> DeepSpeed:
    """DeepSpeed's engine, with the ZeRO stage in ``config``.

    Args:
        timeout_seconds: Time after which a rank that does not respond ends the job.
        config: Any keys of DeepSpeed's own config.
        config_file: A DeepSpeed JSON file.
    """
    prefer_cpu_without_cuda()
    remove_dead_locks()
    return DeepSpeed(config=copy.deepcopy(config), timeout=timedelta(seconds=timeout_seconds))


# The stages differ only in their config; each has the name by which summaries and refusals call it.
deepspeed_z2 = deepspeed_z3 = deepspeed_z1
deepspeed_z2_offload = deepspeed_z3_offload = deepspeed_z3_nvme = deepspeed_z1
