"""The callback that collects the facts of the start card and prints it."""

import logging

import lightning
import torch
from torch import nn

from alignlab.callbacks.card import BatchFacts, ModelFacts, start_card
from alignlab.data.datamodule import DataModule
from alignlab.data.preview import Segment, decode_segments
from alignlab.data.table.table import TokenTable
from alignlab.distributed.strategies import num_parameters
from alignlab.methods.base import Method
from alignlab.rollout.sampler.given import GivenCompletions
from alignlab.run_folder.console import show
from alignlab.run_folder.folder import RunFolder
from alignlab.types.adapted import base_model, is_adapted
from alignlab.types.rows import Demonstration, Preference, Prompt, Text, Unpaired

log = logging.getLogger(__name__)

HIGH_LR, LARGE_MODEL = 2e-4, 50_000_000
"""Full fine-tuning of a model above this size usually fails with a peak learning rate above this value."""


class StartCard(lightning.Callback):
    """Prints the start card on rank 0, after the model is built.

    Args:
        title: Title of the card, such as ``sft · pocket``.
        model: Name of the model.
        folder: The run's folder.
        lr: Peak learning rate; ``None`` if the optimizer has none.
        optimizer: Optimizer, learning rate and schedule in words.
    """

    def __init__(self, *, title: str, model: str, folder: RunFolder, lr: float | None, optimizer: str):
        self.title, self.model, self.folder, self.lr, self.optimizer = title, model, folder, lr, optimizer

    def on_fit_start(self, trainer: lightning.Trainer, method: Method) -> None:
        """Print the card."""
        if not trainer.is_global_zero:
            return
        data: DataModule = trainer.datamodule
        model = model_facts(self.model, method.policy, trainer, self.optimizer)
        card = start_card(
            self.title,
            model=model,
            data=data_counts(data),
            unread=data.unread_columns,
            batch=batch_facts(data, trainer.world_size),
            loss_on=loss_on(method, data),
            example=example(method, data),
            folder=self.folder.path,
        )
        show(card)
        if self.lr and self.lr > HIGH_LR and model.adapter is None and model.num_trainable > LARGE_MODEL:
            log.warning("optimizer.lr=%g suits small models; full fine-tuning of this one needs about 1e-5", self.lr)


def model_facts(name: str, policy: nn.Module, trainer: lightning.Trainer, optimizer: str) -> ModelFacts:
    """Collect the facts about the model to train."""
    trained = next(parameter for parameter in policy.parameters() if parameter.requires_grad)
    base = base_model(policy)
    return ModelFacts(
        name=name,
        architecture=type(base).__name__,
        num_parameters=num_parameters(policy),
        num_trainable=num_parameters(policy, trainable_only=True),
        dtype=str(trained.dtype).removeprefix("torch."),
        attention=base.config._attn_implementation,
        adapter=policy.active_peft_config.peft_type.value.lower() if is_adapted(policy) else None,
        device=device_in_words(trainer),
        optimizer=optimizer,
    )


def device_in_words(trainer: lightning.Trainer) -> str:
    """The device and the precision; on a GPU also whether float32 products are rounded to TF32."""
    words = f"{trainer.strategy.root_device}, precision {trainer.precision}"
    if trainer.strategy.root_device.type != "cuda":
        return words
    return f"{words}, TF32 {'off' if torch.get_float32_matmul_precision() == 'highest' else 'on'}"


def data_counts(data: DataModule) -> dict[str, dict[str, int]]:
    """Collect the numbers of rows and tokens of each part that were kept, cut and dropped."""
    tables = {"train": data.train, "validation": data.validation}
    if data.validation_sets:
        tables |= {f"validation/{name}": table for name, table in data.validation.tables.items()}
    return {part: _counts(table) for part, table in tables.items() if table is not None}


def _counts(table: TokenTable) -> dict[str, int]:
    counts = table.counts
    return {
        "rows": len(table),
        "tokens": counts.kept_tokens,
        "supervised": int(table.num_supervised.sum()),
        "rows cut": counts.cut_rows,
        "rows dropped": counts.dropped_rows,
    }


def batch_facts(data: DataModule, num_ranks: int) -> BatchFacts:
    """Collect the facts about how rows become optimizer steps."""
    plan, epoch = data.plan, data.num_epoch_steps
    mean = None if data.train is None else data.train.lengths.mean() * min(plan.global_batch_size, len(data.train))
    return BatchFacts(
        global_batch_size=plan.global_batch_size,
        batch_size_per_device=plan.batch_size_per_device,
        max_tokens_per_micro_batch=plan.max_tokens_per_micro_batch,
        num_ranks=num_ranks,
        num_micro_batches=-(-plan.global_batch_size // (plan.batch_size_per_device * num_ranks)),
        tokens_per_step=mean,
        num_steps=data.num_steps,
        num_epochs=None if epoch is None else data.num_steps / epoch,
    )


TURNS = {"assistant": "every turn of the assistant", "last": "the last turn of the assistant", "all": "all turns"}
AFTER_PROMPT = {name: f"{turns} after the prompt" for name, turns in TURNS.items()}
LOSS_ON = {
    Demonstration: TURNS,
    Unpaired: AFTER_PROMPT,
    Preference: {name: f"{turns}, in chosen and in every rejected" for name, turns in AFTER_PROMPT.items()},
}
"""Which tokens count, by the kind of row and ``data.loss_on``."""


def loss_on(method: Method, data: DataModule) -> str:
    """What of a row the loss is on, in words."""
    if method.head == "reward":
        return "the scores after the last token of chosen and of every rejected"
    if data.kind is Text:
        return "all tokens"
    if data.kind is Prompt:
        is_given = isinstance(method.rollout.sampler, GivenCompletions)
        return "the completions of the data" if is_given else "what is sampled"
    first = None if data.train is None else data.train[0]
    if first is not None and first.supervised and all(first.supervised[1:]) and data.kind is Demonstration:
        return "all of the text"
    reasoning = "" if data.tokens.loss_on_reasoning else ", but not on its reasoning"
    return LOSS_ON[data.kind][data.tokens.loss_on] + reasoning


def example(method: Method, data: DataModule) -> list[Segment]:
    """The first training row, decoded; with a reward model no token is a target."""
    segments = [] if data.train is None else decode_segments(data.train[0], data.tokenizer)
    return [segment._replace(supervised=False) for segment in segments] if method.head == "reward" else segments
