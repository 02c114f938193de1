"""A tiny policy, rows in memory and a bare Trainer: what the invariants of every method are tested with."""

import functools

import lightning
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.batches import TokenRow
from alignlab.data.plan import PlanSettings
from alignlab.data.steps import StepLoader, num_epoch_steps, table_steps
from alignlab.losses.sft import nll
from alignlab.methods.base import Parts
from alignlab.methods.pretrain import Pretrain
from alignlab.methods.sft import SFT
from alignlab.models import attention  # noqa: F401  (registers the flat attention)

METHODS = {
    "sft": functools.partial(SFT, loss=nll, reduction="token", neftune_alpha=0.0),
    "sft_by_sequence": functools.partial(SFT, loss=nll, reduction="sequence", neftune_alpha=0.0),
    "pretrain": Pretrain,
}


class Rows(list):
    """Token rows in memory, as a table."""

    @property
    def lengths(self):
        return np.array([len(row.tokens) for row in self])


def make_rows(num_rows=13, seed=0):
    """Ragged rows: a prompt and a completion of 1 to 30 tokens each, some targets masked."""
    draw = torch.Generator().manual_seed(seed)
    rows = Rows()
    for index in range(num_rows):
        prompt, completion = torch.randint(1, 30, (2,), generator=draw).tolist()
        tokens = torch.randint(1, 64, (prompt + completion,), generator=draw).tolist()
        supervised = [False] * prompt + (torch.rand(completion, generator=draw) > 0.3).tolist()
        supervised[-1] = True
        rows.append(TokenRow(tokens, supervised, [[prompt, completion]], f"row {index}"))
    return rows


def make_policy(dropout=0.0):
    """A Llama of 20 thousand parameters, always the same."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=dropout,
        pad_token_id=0,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="forest")


def make_method(name, optimizer=torch.optim.SGD, lr=0.5, clip=None, packing=True, policy=make_policy):
    """A method over the tiny policy with a constant learning rate."""
    parts = Parts(
        make_policy=policy,
        open_model=lambda path: policy(),
        make_optimizer=functools.partial(optimizer, lr=lr),
        make_scheduler=lambda optimizer, num_training_steps: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1),
        gradient_clip_val=clip,
        packing=packing,
    )
    return METHODS[name](parts=parts)


def make_loader(rows, batch_size_per_device, *, packing=True, num_steps=4, rank=0, num_ranks=1, workers=0, **changes):
    """Steps of 8 rows; 13 rows make a short last window of 5."""
    settings = PlanSettings(
        **{
            "global_batch_size": 8,
            "batch_size_per_device": batch_size_per_device,
            "max_tokens_per_micro_batch": None,
            "order": "shuffled",
            "order_column": None,
            "seed": 1,
            **changes,
        }
    )
    steps = functools.partial(table_steps, rows, settings, rank, num_ranks)
    return StepLoader(steps, num_steps=num_steps, packing=packing, pad_token_id=0, num_workers=workers, resumable=True)


def fit(method, loader, *, weights=True, callbacks=(), resume=None, **options):
    """Train with a bare Trainer; returns the weights in one vector (unless left out) and every step's metrics."""
    history = History()
    trainer = lightning.Trainer(
        **{
            "max_steps": len(loader),
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "callbacks": [history, *callbacks],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            **options,
        }
    )
    trainer.fit(method, train_dataloaders=loader, ckpt_path=resume, weights_only=True)
    vector = torch.cat([p.detach().flatten() for p in method.policy.parameters()]) if weights else None
    return vector, history.steps


class History(lightning.Callback):
    """Keeps what every step logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_index):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


__all__ = ["METHODS", "fit", "make_loader", "make_method", "make_policy", "make_rows", "num_epoch_steps"]
