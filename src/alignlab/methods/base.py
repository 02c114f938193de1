"""What all methods share: one training step of planned micro-batches, one reducer, one way to log.

A new method is a subclass that names the kind of row that it takes and writes ``compute_loss``:

    class SFT(Method):
        row_kind = Demonstration

        def compute_loss(self, batch: MicroBatch) -> LossOutput:
            logps = token_scores(self.policy, batch).logps
            return LossOutput([LossTerm(-logps, "supervised_tokens")])

What a method holds beside its policy (a reference, a critic) is a ``Component``; a method that samples has a
``rollout``.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
import torch
from torch import Tensor, nn

from alignlab.distributed.comm import num_ranks
from alignlab.distributed.strategies import Sharding, full_shape, num_parameters, sharding_of
from alignlab.errors import InputError
from alignlab.metrics import METRICS, Metric, check_names
from alignlab.models.adapters import zero_gradients
from alignlab.models.component import Component
from alignlab.models.heads import Head
from alignlab.models.scoring import verify
from alignlab.optim.lost_steps import LostSteps, told_of_overflow
from alignlab.optim.reduction import RunningMeans, step_loss
from alignlab.optim.throughput import mfu
from alignlab.types.batch import MicroBatch, StepBatch, StepTotals
from alignlab.types.loss import LossOutput
from alignlab.types.rows import Row

if TYPE_CHECKING:  # methods that do not sample need nothing of it
    from alignlab.rollout.data import RolloutData
    from alignlab.rollout.rollout import Rollout

log = logging.getLogger(__name__)

NARROW = (torch.bfloat16, torch.float16, torch.int8)


@dataclass(frozen=True, kw_only=True)
class Factories:
    """What a method is made of besides its own hyper-parameters.

    Args:
        make_policy: Builds the model that is trained; called once, where the strategy wants models to be made.
        open_model: Opens further weights by path, for a reference or a critic.
        make_optimizer: Parameter groups → optimizer.
        make_scheduler: ``(optimizer, num_training_steps=…)`` → schedule, stepped once per optimizer step.
        gradient_clip_val: Largest global gradient norm; ``None`` does not clip.
        packing: Whether batches come in the flat layout.
    """

    make_policy: Callable[[], nn.Module]
    open_model: Callable[[str], nn.Module]
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    make_scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler]
    gradient_clip_val: float | None
    packing: bool


@dataclass(frozen=True)
class Progress:
    """How far training has come; saved in checkpoints, the axis of every curve."""

    step: int = 0
    epoch: float = 0.0
    samples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    def after(self, totals: StepTotals, epoch: float) -> "Progress":
        """The progress once a step of these sizes is done."""
        return Progress(
            self.step + 1,
            epoch,
            self.samples + totals.rows,
            self.tokens + totals.tokens,
            self.supervised_tokens + totals.supervised_tokens,
        )


class Method(lightning.LightningModule):
    """Base of all methods.

    Args:
        factories: Factories of the policy, its optimizer and its schedule.
    """

    row_kind: ClassVar[type[Row]]
    """The kind of row that ``compute_loss`` understands."""

    head: ClassVar[Head] = "language_model"
    """What the policy ends in."""

    own_metrics: ClassVar[Mapping[str, Metric]] = {}
    """Metrics that ``alignlab.metrics`` does not have, by name, each with its unit and meaning."""

    rollout: "RolloutData | None" = None
    """Where training rows come from, for a method that samples them."""

    needs_greedy: bool = False
    """With a rollout: whether each prompt is also completed greedily, for a baseline."""

    scores_before: tuple[str, ...] = ()
    """With a rollout: names of what ``score`` returns; nothing is scored where there is none."""

    wants_companions: ClassVar[bool] = False
    """Whether a step also brings each prompt with the completion of another row (``StepBatch.companions``)."""

    number_columns: ClassVar[tuple[str, ...]] = ()
    """Settings that name a numeric column of the data, which every row must then have."""

    def __init__(self, *, factories: Factories):
        super().__init__()
        self.automatic_optimization = False
        self.factories = factories
        self.policy: nn.Module | None = None
        self.progress = Progress()
        self.validation = RunningMeans()
        self.lost_steps = LostSteps()
        self.checks_gradients, self.is_verified = True, False

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The objective on one micro-batch: the only thing that a method must write."""
        raise NotImplementedError(f"{type(self).__name__} has no compute_loss(batch) -> LossOutput")

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """With a rollout: values of tokens that must be known before the first update. Each ``[N]``."""
        return {}

    def advantages(self, rollout: "Rollout") -> "Rollout":
        """With a rollout: the same with a column ``advantages``, per completion ``[S]`` or per token ``[N]``."""
        raise NotImplementedError(f"{type(self).__name__} has no advantages(rollout) -> Rollout")

    def prepare_step(self, step: StepBatch) -> None:
        """What must be known of a whole step before its first micro-batch; in training and validation."""

    # --- what Lightning calls -----------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the policy, in train mode, and what is held beside it; may be called again and does nothing then."""
        if self.policy is not None:
            return
        policy = self.factories.make_policy().train()
        for component in self.components:
            component.build(policy)
        self.policy = self.sharding.shard(policy)
        for component in self.components:
            component.shard(self.policy, self.sharding)

    def configure_optimizers(self):
        """One optimizer and its schedule; vectors (norms, biases) are spared weight decay."""
        groups = [
            {"params": [p for p in self._trained() if len(full_shape(p)) >= 2]},
            {"params": [p for p in self._trained() if len(full_shape(p)) < 2], "weight_decay": 0.0},
        ]
        try:
            optimizer = self.factories.make_optimizer([group for group in groups if group["params"]])
        except (TypeError, ValueError) as error:
            raise InputError("optimizer", str(error), "Choose another optimizer, such as optimizer=adamw") from error
        return [optimizer], [self.factories.make_scheduler(optimizer, num_training_steps=self.trainer.max_steps)]

    def on_fit_start(self) -> None:
        """Check that the model keeps the documents of a batch apart before it learns from them."""
        self.verify_packing()
        for component in self.components:
            component.before_fit(self.trainer)

    def verify_packing(self) -> None:
        """Check, once, that the model keeps the documents of a batch apart."""
        if self.is_verified:
            return
        self.is_verified = True
        difference = self.sharding.forward(verify, self.policy, self.factories.packing)
        log.debug("log-probabilities agree with the model's own forward within %.2g nats", difference)

    def training_step(self, step: StepBatch, batch_index: int) -> None:
        """One optimizer step: every micro-batch's backward, clipping, the update, the schedule, the log."""
        assert self.policy.training, "the policy must be in train mode while it is trained"
        started = time.perf_counter()
        running, optimizer, sharding = RunningMeans(), self.optimizers(), self.sharding
        losses: list[Tensor] = []
        for component in self.components:
            component.before_step(step, self.progress.step)
        self.prepare_step(step)
        for index, batch in enumerate(step.micro_batches):
            last = index == len(step.micro_batches) - 1
            with sharding.micro_batch(last):
                output = sharding.forward(self.compute_loss, batch)
                loss = step_loss(output.terms, step.totals, batch.counted)
                self.manual_backward(loss)
            losses.append(loss.detach())
            running.add(output, batch.counted)
        if self.checks_gradients and step.has_signal:
            self._refuse_dead_parameters()
            self.checks_gradients = False
        lr = optimizer.param_groups[0]["lr"]
        running.close_step(step.totals)
        means = running.means()
        lost = not math.isfinite(means.get("loss", 0.0))
        with told_of_overflow(lr):
            norm = sharding.update(optimizer, self._trained(), self.factories.gradient_clip_val, lost)
        norms, lost = self._norms(norm), lost or not bool(norm.isfinite())
        self.lr_schedulers().step()
        self.progress = self.progress.after(step.totals, step.epoch)
        for component in self.components:
            component.after_step(self.progress.step)
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # what was asked of the device is not done yet
        timing = self._timing(step.totals, time.perf_counter() - started)
        self.trainer._results.reset(fx="training_step")  # else what an earlier step logged is told again
        self._log({**_named(means, "train"), **norms, **timing, **step.metrics, "train/lr": lr})
        self.lost_steps.count(lost, step, losses, self.progress.step)

    def validation_step(self, step: StepBatch, batch_index: int) -> None:
        """Gather sums and counts; the means are taken over the whole validation set."""
        self.prepare_step(step)
        for batch in step.micro_batches:
            output = self.sharding.forward(self.compute_loss, batch)
            self.validation.add(output, batch.counted)
        self.validation.close_step(step.totals)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out rows and ranks."""
        means = _named(self.validation.means(), "val")
        if "val/nll" in means:
            means["val/perplexity"] = means["val/nll"].exp()
        self._log(means)

    def carries(self, name: str) -> bool:
        """Whether a checkpoint must carry a frozen weight of this name, because it changes all the same."""
        changing = {name for name, part in self.named_children() if isinstance(part, Component) and part.changes}
        return not changing.isdisjoint(name.split("."))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the progress, as plain numbers."""
        checkpoint["progress"] = asdict(self.progress)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the progress."""
        self.progress = replace(self.progress, **checkpoint["progress"])
        self.checks_gradients = self.progress.step == 0

    # --- the parts of a step ------------------------------------------------------------------------------------------

    @property
    def sharding(self) -> Sharding:
        """How the work is spread."""
        return sharding_of(self.trainer.strategy)

    @contextmanager
    def as_in_training(self) -> Iterator[None]:
        """In the number formats of the training forward, but without dropout: what is known before a loss is taken."""
        modules = [module for module in self.trained_modules if module.training]
        for module in modules:
            module.eval()
        try:
            with self.trainer.precision_plugin.train_step_context():
                yield
        finally:
            for module in modules:
                module.train()

    @property
    def is_low_precision(self) -> bool:
        """Whether anything is computed in 16 bits or less, where a result depends on what is computed beside it."""
        narrow = any(p.dtype in NARROW for p in self.policy.parameters())
        return narrow or "16" in str(self.trainer.precision) or self.sharding.is_low_precision

    @property
    def trained_modules(self) -> tuple[nn.Module, ...]:
        """What the optimizer updates: the policy, and components that learn."""
        return (self.policy, *(component for component in self.components if component.is_trained))

    @property
    def components(self) -> list[Component]:
        """What is held beside the policy."""
        return [part for part in self.children() if isinstance(part, Component)]

    def _trained(self) -> list[nn.Parameter]:
        return [p for module in self.trained_modules for p in module.parameters() if p.requires_grad]

    def _norms(self, norm: Tensor) -> dict[str, Tensor]:
        """Global norm of the gradient before clipping and, where it is clipped, after."""
        limit = self.factories.gradient_clip_val
        clipped = {} if limit is None else {"train/grad_norm_clipped": norm.clamp(max=limit)}
        return {"train/grad_norm": norm, **clipped}

    def _refuse_dead_parameters(self) -> None:
        """After the first backward, every trainable tensor must have been reached."""
        dead = zero_gradients(self.policy, self.sharding.gradient, self.sharding.value)
        if dead:
            raise InputError(
                f"training {len(self._trained())} tensors",
                f"after the first backward pass {len(dead)} of them have no gradient: {', '.join(dead[:5])}",
                "Leave them out of peft.target_modules, or choose another model",
            )

    def _timing(self, totals: StepTotals, seconds: float) -> dict[str, float]:
        rate = totals.tokens / seconds
        utilisation = mfu(num_parameters(self.policy), rate, num_ranks())
        timing = {"train/tokens_per_second": rate, "train/step_seconds": seconds}
        return timing if utilisation is None else {**timing, "train/mfu": utilisation}

    def _log(self, values: Mapping[str, Tensor | float]) -> None:
        """Log under known names only, with the progress beside them as their axis."""
        check_names(values, METRICS | self.own_metrics)
        progress = {f"progress/{name}": float(value) for name, value in asdict(self.progress).items()}
        self.log_dict({**{k: float(v) for k, v in values.items()}, **progress})


def _named(means: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
    """``loss`` becomes ``train/loss``; ``rewards/chosen`` keeps its name in training and is ``val/…`` in validation."""
    return {name if "/" in name and stage == "train" else f"{stage}/{name}": mean for name, mean in means.items()}
