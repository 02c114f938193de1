"""Base class of all methods: the training step, the reduction of losses, and logging.

A new method is a subclass that sets the kind of row it takes and implements ``compute_loss``:

    class SFT(Method):
        row_kind = Demonstration

        def compute_loss(self, batch: MicroBatch) -> LossOutput:
            logps = token_scores(self.policy, batch).logps
            return LossOutput([LossTerm(-logps, "supervised_tokens")])

Models other than the policy (a reference, a critic) are ``Component`` attributes. A method that samples has a
``rollout``.
"""

import inspect
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
import torch
from torch import Tensor, nn

from alignlab.distributed.comm import num_ranks
from alignlab.distributed.strategies import Sharding, full_shape, num_parameters, sharding_of
from alignlab.errors import InputError
from alignlab.methods.step_log import log_step
from alignlab.metrics import METRICS, Metric, check_names, in_sets
from alignlab.models.adapters import SPARSE, zero_gradients
from alignlab.models.component import Component
from alignlab.models.heads import Head
from alignlab.models.scoring import verify
from alignlab.optim.fused import make_fused
from alignlab.optim.muon import hidden_matrices
from alignlab.optim.rates import SUPERVISED, LearningRates
from alignlab.optim.reduction import RunningMeans, step_loss
from alignlab.optim.schedules import set_rates
from alignlab.optim.skipped_steps import SkippedSteps, explain_overflow
from alignlab.optim.throughput import mfu
from alignlab.types.batch import MicroBatch, StepBatch, StepTotals
from alignlab.types.loss import LossOutput
from alignlab.types.rows import Row

if TYPE_CHECKING:  # not imported for methods without a rollout
    from alignlab.rollout.data import RolloutData
    from alignlab.rollout.rollout import Rollout

log = logging.getLogger(__name__)

NUM_CENSUSES = 5
"""Steps in which a trainable tensor must have a gradient once."""

NARROW = (torch.bfloat16, torch.float16, torch.int8)


@dataclass(frozen=True, kw_only=True)
class Factories:
    """Factories of the policy, optimizer and scheduler, and other settings that a method needs.

    Args:
        make_policy: Builds the policy; called once, in ``configure_model``.
        open_model: Loads other weights from a path, for a reference.
        open_reward_model: Loads a reward model from a path, for a critic.
        make_optimizer: Parameter groups → optimizer; it also gets the ``hidden_matrices`` if it takes ``hidden``.
        make_scheduler: ``(optimizer, num_training_steps=…)`` → scheduler, stepped once per optimizer step.
        gradient_clip_val: Maximum global gradient norm; ``None`` for no clipping.
        packing: Whether batches have the flat layout.
    """

    make_policy: Callable[[], nn.Module]
    open_model: Callable[[str], nn.Module]
    open_reward_model: Callable[[str], nn.Module]
    make_optimizer: Callable[..., torch.optim.Optimizer]
    make_scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler]
    gradient_clip_val: float | None
    packing: bool


@dataclass(frozen=True)
class Progress:
    """Progress of training: saved in checkpoints, and the x-axis of every curve."""

    step: int = 0
    epoch: float = 0.0
    samples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    def after(self, totals: StepTotals, epoch: float) -> "Progress":
        """The progress after a step with these counts."""
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
        factories: Factories of the policy, its optimizer and its scheduler.
    """

    row_kind: ClassVar[type[Row]]
    """The kind of row that the method trains on."""

    head: ClassVar[Head] = "language_model"
    """The head of the policy."""

    learning_rates: ClassVar[LearningRates] = SUPERVISED
    """Peak rates of AdamW if the config leaves it open."""

    own_metrics: ClassVar[Mapping[str, Metric]] = {}
    """Metrics of this method that are not in ``alignlab.metrics``, by name, with unit and meaning."""

    keeps_dropout: ClassVar[bool] = False
    """Whether the model's own dropout stays on in training unless ``model.dropout`` is set. It is off where scores are
    compared with those of a reference, of the sampler or of another completion."""

    rollout: "RolloutData | None" = None
    """Source of the training rows, for a method that samples them."""

    needs_greedy: bool = False
    """For methods with a rollout: whether each prompt also gets a greedy completion, for a baseline."""

    score_names: tuple[str, ...] = ()
    """For methods with a rollout: names of the values that ``score`` returns; if empty, ``score`` is not called."""

    needs_mismatched: ClassVar[bool] = False
    """Whether a step also has mismatched rows, each a prompt with the completion of another row (for KTO)."""

    number_columns: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that select a numeric column, which every row must then have. ``weight_column`` weighs
    rows: a step counts every unit by it, and the method multiplies each loss by that of its row."""

    weighs_turns: ClassVar[bool] = False
    """Whether the method multiplies the losses of tokens by ``batch.turn_weights``, by which a step counts tokens."""

    def __init__(self, *, factories: Factories):
        super().__init__()
        self.automatic_optimization = False
        self.factories = factories
        self.policy: nn.Module | None = None
        self.progress = Progress()
        self.validation: dict[str | None, RunningMeans] = {}
        """Sums of the validation, of all rows under None and of each named set."""
        self.skipped_steps = SkippedSteps()
        self.checks_gradients, self.is_verified = True, False
        self._num_censuses, self._without_gradient = 0, None

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Compute the loss of a micro-batch. Every method must implement this."""
        raise NotImplementedError(f"{type(self).__name__} has no compute_loss(batch) -> LossOutput")

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """For methods with a rollout: score tokens before the first update. Each ``[N]``."""
        return {}

    def advantages(self, rollout: "Rollout") -> "Rollout":
        """For methods with a rollout: add a column ``advantages``, per completion ``[S]`` or per token ``[N]``."""
        raise NotImplementedError(f"{type(self).__name__} has no advantages(rollout) -> Rollout")

    def prepare_step(self, step: StepBatch) -> None:
        """Compute values over the whole step before its first micro-batch, in training and validation."""

    # --- hooks of Lightning -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the policy, in train mode, and the components. Does nothing when called again."""
        if self.policy is not None:
            return
        policy = self.factories.make_policy().train()
        for component in self.components:
            component.build(policy)
        self.policy = self.sharding.shard(policy)
        for component in self.components:
            component.shard(self.policy, self.sharding)

    def configure_optimizers(self):
        """Make the optimizer and its scheduler, without weight decay for vectors (norms, biases)."""
        by_factor: dict[float, list[nn.Parameter]] = {}
        for module in self.trained_modules:
            factor = module.lr_factor if isinstance(module, Component) else 1.0
            by_factor.setdefault(factor, []).extend(p for p in module.parameters() if p.requires_grad)
        groups = [
            {"params": [p for p in parameters if (len(full_shape(p)) < 2) == are_vectors], **decay}
            for parameters in by_factor.values()
            for are_vectors, decay in ((False, {}), (True, {"weight_decay": 0.0}))
        ]
        make = self.factories.make_optimizer
        if "hidden" in inspect.signature(make).parameters:
            make = partial(make, hidden=hidden_matrices(self.trained_modules))
        try:
            optimizer = make_fused(make, [group for group in groups if group["params"]])
        except (TypeError, ValueError) as error:
            raise InputError("optimizer", str(error), "Choose another optimizer, such as optimizer=adamw") from error
        factors = {parameter: factor for factor, parameters in by_factor.items() for parameter in parameters}
        for group in optimizer.param_groups:  # an optimizer of one's own may have other groups, and no rate
            if (factor := factors[group["params"][0]]) != 1.0:
                group["lr"] *= factor
        return [optimizer], [self.factories.make_scheduler(optimizer, num_training_steps=self.trainer.max_steps)]

    def on_fit_start(self) -> None:
        """Verify packing, and prepare the components."""
        self.verify_packing()
        for component in self.components:
            component.before_fit(self.trainer)

    def on_train_start(self) -> None:
        """Set the rate that the schedule asks for: that of a longer run than the one resumed is another."""
        before, now = set_rates(self.lr_schedulers())
        if before != now:
            log.info("the schedule of %d steps goes on at rate %g, not %g", self.trainer.max_steps, now, before)

    def verify_packing(self) -> None:
        """Compare the log-probs of packed batches with the model's own forward, once."""
        if self.is_verified:
            return
        self.is_verified = True
        difference = self.sharding.forward(verify, self.policy, self.factories.packing)
        log.debug("log-probs agree with the model's own forward within %.2g nats", difference)

    def training_step(self, step: StepBatch, batch_index: int) -> None:
        """One optimizer step: forward and backward of each micro-batch, clipping, update, scheduler and logging."""
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
        lr = optimizer.param_groups[0]["lr"]
        running.close_step(step.totals)
        means = running.means()
        loss_is_finite, scale = math.isfinite(means.get("loss", 0.0)), sharding.loss_scale
        with explain_overflow(lr):
            norm = sharding.update(optimizer, self._trained(), self.factories.gradient_clip_val, not loss_is_finite)
        norms, norm_is_finite = self._norms(norm), bool(norm.isfinite())
        self.lr_schedulers().step()
        self.progress = self.progress.after(step.totals, step.epoch)
        for component in self.components:
            component.after_step(self.progress.step)
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # kernels run asynchronously; the timing needs them done
        timing = self._timing(step.totals, time.perf_counter() - started)
        logged = {**_named(means, "train"), **norms, **timing, **step.metrics, "train/lr": lr}
        log_step(self.trainer, self._with_progress(logged), self.progress.step)
        if loss_is_finite and not norm_is_finite and scale > 1.0:
            text = "step %d changed nothing: its gradient, times the loss scale of %g, overflowed; the scale is halved"
            log.info(text, self.progress.step, scale)
        else:
            self.skipped_steps.count(not (loss_is_finite and norm_is_finite), step, losses, self.progress.step)

    def validation_step(self, step: StepBatch, batch_index: int) -> None:
        """Add up sums and counts, for means over all validation rows, and over each named set."""
        self.prepare_step(step)
        sums = [self.validation.setdefault(name, RunningMeans()) for name in dict.fromkeys((None, step.validation_set))]
        for batch in step.micro_batches:
            output = self.sharding.forward(self.compute_loss, batch)
            for running in sums:
                running.add(output, batch.counted)
        for running in sums:
            running.close_step(step.totals)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation rows and ranks, and over those of each named set."""
        values = {}
        for name, running in self.validation.items():
            means = running.means()
            if "nll" in means:
                means["perplexity"] = means["nll"].exp()
            values |= _named(means, "val" if name is None else f"val/{name}")
        self.log_dict(self._with_progress(values))

    def carries(self, name: str) -> bool:
        """Whether a frozen weight changes during training, so that checkpoints must include it."""
        changing = {n: child for n, child in self.named_children() if isinstance(child, Component) and child.changes}
        names = {*changing, *(component.adapter for component in changing.values())}
        return not names.isdisjoint(name.split("."))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the progress."""
        checkpoint["progress"] = asdict(self.progress)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the progress."""
        self.progress = replace(self.progress, **checkpoint["progress"])
        self.checks_gradients = self.progress.step == 0

    # --- the parts of a step ------------------------------------------------------------------------------------------

    @property
    def sharding(self) -> Sharding:
        """The sharding of the strategy."""
        return sharding_of(self.trainer.strategy)

    @contextmanager
    def scoring_mode(self) -> Iterator[None]:
        """Score as in training, in its precision, but in eval mode (without dropout)."""
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
        """Whether anything is computed in 16 bits or less, so that log-probs depend on the rest of the batch."""
        narrow = any(p.dtype in NARROW for p in self.policy.parameters())
        return narrow or "16" in str(self.trainer.precision) or self.sharding.compute_dtype in NARROW

    @property
    def trained_modules(self) -> tuple[nn.Module, ...]:
        """Modules that the optimizer updates: the policy and the trained components."""
        return (self.policy, *(component for component in self.components if component.is_trained))

    @property
    def components(self) -> list[Component]:
        """The components: models other than the policy."""
        return [child for child in self.children() if isinstance(child, Component)]

    def _trained(self) -> list[nn.Parameter]:
        return [p for module in self.trained_modules for p in module.parameters() if p.requires_grad]

    def _norms(self, norm: Tensor) -> dict[str, Tensor]:
        """Global gradient norm before clipping and, if gradients are clipped, after."""
        limit = self.factories.gradient_clip_val
        clipped = {} if limit is None else {"train/grad_norm_clipped": norm.clamp(max=limit)}
        return {"train/grad_norm": norm, **clipped}

    def _refuse_dead_parameters(self) -> None:
        """Check in the first steps that every trainable tensor has a gradient in one of them.

        In the first step alone, what is multiplied by a zero has none; with a warm-up, that zero may stay for a step.
        """
        missing = zero_gradients(self.policy, self.sharding.gradient, self.sharding.value, self._without_gradient)
        self._num_censuses, self._without_gradient = self._num_censuses + 1, missing
        self.checks_gradients = bool(missing) and self._num_censuses < NUM_CENSUSES
        if self.checks_gradients or not missing:
            return
        dead = [name for name in missing if not any(word in name for word in SPARSE)]
        if dead:
            raise InputError(
                f"training {len(self._trained())} tensors",
                f"in the first {NUM_CENSUSES} steps {len(dead)} of them have no gradient: {', '.join(dead[:5])}",
                "Leave them out of peft.target_modules, or choose another model",
            )
        log.warning("the first %d steps hold none of the tokens that %s trains", NUM_CENSUSES, missing[0])

    def _timing(self, totals: StepTotals, seconds: float) -> dict[str, float]:
        rate = totals.tokens / seconds
        utilisation = mfu(num_parameters(self.policy), rate, num_ranks())
        timing = {"train/tokens_per_second": rate, "train/step_seconds": seconds}
        return timing if utilisation is None else {**timing, "train/mfu": utilisation}

    def _with_progress(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Values with the progress, which is the x-axis of the curves. Names must be known metrics."""
        known = METRICS | self.own_metrics
        check_names(values, known | in_sets(known, filter(None, self.validation)))
        progress = {f"progress/{name}": float(value) for name, value in asdict(self.progress).items()}
        return {**{name: float(value) for name, value in values.items()}, **progress}


def _named(means: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
    """``loss`` becomes ``train/loss``; ``rewards/chosen`` keeps its name in training and is ``val/…`` in validation."""
    return {name if "/" in name and stage == "train" else f"{stage}/{name}": mean for name, mean in means.items()}
