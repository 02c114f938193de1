"""DeepSpeed's ZeRO (arXiv 1910.02054), with offload to the host (2101.06840) and to disks (2104.07857), on any device.

1. A model is built whole and partitioned tensor by tensor at once, instead of being built in pieces: initialisation
   code and adapters would otherwise meet empty tensors and start with other weights than under other strategies.
2. Accumulation and the division by the step's weight are ours; DeepSpeed's own count stays at 1.
3. Each micro-batch goes through the engine's forward, which forgets that a backward was seen. Without it, later
   micro-batches overwrite the gradient of earlier ones.
"""

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Annotated, Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from pydantic import Field
from torch import Tensor, nn

from alignlab.distributed.strategies.base import Result, Sharding, moves_weights, tensors_of
from alignlab.distributed.strategies.state import NamedState, Stored, names_of
from alignlab.distributed.strategies.zero_state import EngineState


class Partitioned(Sharding):
    """What a method asks, answered by DeepSpeed's engine."""

    strategy: "DeepSpeed"

    def shard(self, policy: nn.Module) -> nn.Module:
        """ZeRO-3: partition tensor by tensor. Other stages keep whole weights on every rank."""
        if not self.strategy.zero_stage_3:
            return policy
        from deepspeed import zero

        self.strategy.cast(policy)
        zero.Init(module=policy, config_dict_or_path=self.strategy.config)
        return policy

    def shard_beside(self, model: nn.Module, trained: bool = False) -> nn.Module:
        """As the policy: a part of the same engine, whose hooks gather it."""
        return self.shard(model)

    def forward(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call it as the forward of the engine's module."""
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
        """Tell the engine which backward ends the step."""
        self.strategy.model.set_gradient_accumulation_boundary(last)
        yield

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """Gathered."""
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)

    def value(self, parameter: nn.Parameter) -> Tensor:
        """Gathered."""
        with self._gathered([parameter]):
            return parameter.detach().clone()

    def update(self, optimizer: Any, parameters: list[nn.Parameter], limit: float | None, lost: bool) -> Tensor:
        """The engine clips and steps at once; it leaves out by itself what is not finite."""
        engine = self.strategy.model
        engine.optimizer.clip_grad, self.strategy.lost = limit or 0.0, lost
        optimizer.step()
        optimizer.zero_grad()
        return torch.as_tensor(engine.get_global_grad_norm())

    @contextmanager
    def whole(self, policy: nn.Module) -> Iterator[None]:
        """ZeRO-3: gather once."""
        if not self.strategy.zero_stage_3:
            yield
            return
        from deepspeed.runtime.zero import unwrap_model_for_generation

        with unwrap_model_for_generation(self.strategy.model):
            yield

    def full_state_dict(self, policy: nn.Module) -> Mapping[str, Tensor] | None:
        """ZeRO-3: gathered tensor by tensor onto the CPU of rank 0."""
        if not self.strategy.zero_stage_3:
            return None
        shapes = {name: tensor for name, tensor in policy.state_dict(keep_vars=True).items()}
        return {name: self._on_cpu(tensor) for name, tensor in shapes.items()}

    def _on_cpu(self, tensor: Tensor) -> Tensor:
        with self._gathered([tensor]):
            return tensor.detach().cpu().clone() if self.strategy.is_global_zero else tensor.new_empty(0)

    def _gathered(self, tensors: list[Tensor]) -> Any:
        from deepspeed import zero

        partitioned = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
        return zero.GatheredParameters(partitioned) if partitioned else nullcontext()


class DeepSpeed(NamedState, DeepSpeedStrategy):
    """Lightning's side: the engine on any device, the model partitioned by us, steps called without a detour."""

    sharding = Partitioned

    lost = False
    """Whether nothing may be learned from the step at hand."""

    def setup_environment(self) -> None:
        """Set the processes up, on CPUs too."""
        if self.root_device.type == "cpu":
            _use_cpu()
        super(DDPStrategy, self).setup_environment()
        self.setup_distributed()

    def setup_distributed(self) -> None:
        """Join the process group: nccl on GPUs, gloo on CPUs."""
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        """The device of this rank, which DeepSpeed wants to have a number."""
        device = super().root_device
        return torch.device("cpu", self.local_rank) if device.type == "cpu" else device

    def model_sharded_context(self) -> Any:
        """Models are built whole; see point 1 at the top."""
        self._init_config_if_needed()
        return nullcontext()

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        """Call the step itself; its micro-batches go through the engine."""
        with self.precision_plugin.train_step_context():
            return self.lightning_module.training_step(*arguments, **options)

    def validation_step(self, *arguments: Any, **options: Any) -> Any:
        """Call the step itself; its micro-batches go through the engine."""
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*arguments, **options)

    def _init_optimizers(self) -> Any:
        """Keep the names of the parameters, which DeepSpeed replaces by flat buffers."""
        optimizer, scheduler = super()._init_optimizers()
        self.group_names = names_of(optimizer, self.lightning_module)
        return optimizer, scheduler

    def _setup_model_and_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """Hold each share of the weights once, and let the inner optimizer step only where something is to move."""
        engine, optimizer = super()._setup_model_and_optimizer(*arguments, **options)
        _share_masters(optimizer)
        inner, step = optimizer.optimizer, optimizer.optimizer.step

        def step_if_it_moves(*arguments: Any, **options: Any) -> Any:
            # The engine knows the norm by now, and goes on to copy the masters, changed or not.
            if not self.lost and moves_weights(torch.as_tensor(optimizer._global_grad_norm)):
                return step(*arguments, **options)
            return None

        inner.step = step_if_it_moves
        return engine, optimizer

    def weight_shares(self) -> dict[str, Tensor]:
        """Shares of the float32 masters."""
        return EngineState(self.model, self.lightning_module).weight_shares()

    def optimizer_shares(self) -> dict[str, dict[str, Any]]:
        """Shares by name out of DeepSpeed's flat buffers."""
        return EngineState(self.model, self.lightning_module).optimizer_shares()

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Groups of the optimizer inside the engine."""
        groups = self.model.optimizer.param_groups
        return [{**group, "params": of} for group, of in zip(groups, self.group_names, strict=True)]

    def fill(self, stored: Stored) -> None:
        """Into the masters, the flat buffers and the weights that the engine computes with."""
        EngineState(self.model, self.lightning_module).fill(stored)
        for group, settings in zip(self.model.optimizer.param_groups, stored.groups, strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})

    def cast(self, policy: nn.Module) -> None:
        """Round the weights to the number format that the engine computes in, which keeps float32 masters."""
        formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
        chosen = [dtype for key, dtype in formats.items() if self.config.get(key, {}).get("enabled")]
        for parameter in policy.parameters():
            if chosen and parameter.is_floating_point():
                parameter.data = parameter.data.to(chosen[0])


def _share_masters(optimizer: Any) -> None:
    """Let float32 shares of ZeRO-3 be their own masters.

    DeepSpeed means to, but asks whether a device equals the name of one, which is never so, and makes copies.
    """
    if getattr(optimizer, "offload_optimizer", True):  # masters rest on the host, or another stage
        return
    pairs = zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True)
    for master, share in pairs:
        if share is not None and (master.dtype, master.device) == (share.dtype, share.device):
            master.data = share


def _use_cpu() -> None:
    """Make DeepSpeed compute on the CPU, whatever else the machine has."""
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())


def has_asynchronous_io() -> bool:
    """Whether DeepSpeed's reader and writer of disks can be built here."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def deepspeed_z1(
    *, timeout_seconds: Annotated[float, Field(gt=0)], config: dict[str, Any], config_file: str | None
) -> DeepSpeed:
    """DeepSpeed's engine.

    Args:
        timeout_seconds: After which a rank that does not answer ends the job.
        config: Any keys of DeepSpeed's own config.
        config_file: A DeepSpeed JSON file.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return DeepSpeed(config=copy.deepcopy(config), timeout=timedelta(seconds=timeout_seconds))


# The stages differ in their config alone; each has a name, by which summaries and refusals call it.
deepspeed_z2 = deepspeed_z3 = deepspeed_z1
deepspeed_z2_offload = deepspeed_z3_offload = deepspeed_z3_nvme = deepspeed_z1
