"""The facts on the start card: what is about to be trained on what."""

import logging
from collections.abc import Iterator
from typing import Any

import lightning
from torch import nn

from alignlab.callbacks.card import BatchFacts, ModelFacts, Piece, start_card
from alignlab.data.datamodule import DataModule
from alignlab.data.table.table import TokenTable
from alignlab.distributed.strategies import num_parameters
from alignlab.methods.base import Method
from alignlab.run_folder.console import show
from alignlab.run_folder.folder import RunFolder
from alignlab.types.adapted import base_model, is_adapted

log = logging.getLogger(__name__)

HIGH_LR, LARGE_MODEL = 2e-4, 50_000_000
"""Above this peak learning rate, full fine-tuning of a model above this size usually destroys it."""


class StartCard(lightning.Callback):
    """Prints the start card once the model is built, on rank 0.

    Args:
        title: ``sft · pocket``.
        model: The model's name.
        folder: The run's folder.
        lr: Peak learning rate, ``None`` where the optimizer has none.
    """

    def __init__(self, *, title: str, model: str, folder: RunFolder, lr: float | None):
        self.title, self.model, self.folder, self.lr = title, model, folder, lr

    def on_fit_start(self, trainer: lightning.Trainer, method: Method) -> None:
        """Print."""
        if not trainer.is_global_zero:
            return
        data: DataModule = trainer.datamodule
        model = model_facts(self.model, method.policy, trainer)
        card = start_card(
            self.title,
            model=model,
            data=data_counts(data),
            batch=batch_facts(data, trainer.world_size),
            example=[] if data.train is None else example_pieces(data.train, data.tokenizer),
            folder=self.folder.path,
        )
        show(card)
        if self.lr and self.lr > HIGH_LR and model.adapter is None and model.num_trainable > LARGE_MODEL:
            log.warning("optimizer.lr=%g is meant for small models; all weights of this one want 1e-5 or so", self.lr)


def model_facts(name: str, policy: nn.Module, trainer: lightning.Trainer) -> ModelFacts:
    """What is trained, where, and in which number format."""
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
        device=f"{trainer.strategy.root_device}, precision {trainer.precision}",
    )


def data_counts(data: DataModule) -> dict[str, dict[str, int]]:
    """Rows and tokens kept, cut and dropped of each part."""
    tables = {"train": data.train, "validation": data.validation}
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
    """How rows become optimizer steps."""
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


def example_pieces(table: TokenTable, tokenizer: Any) -> Iterator[Piece]:
    """The first row decoded, in stretches of supervised and other tokens."""
    row = table[0]
    start = 0
    for place in range(1, len(row.tokens) + 1):
        if place == len(row.tokens) or row.supervised[place] != row.supervised[start]:
            yield tokenizer.decode(row.tokens[start:place]), row.supervised[start]
            start = place
