"""A tiny policy, rows in memory and a bare Trainer: what the invariants of every method are tested with."""

import dataclasses
import functools

import lightning
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from alignlab.data.batching.mismatch import WithMismatched
from alignlab.data.batching.steps import StepLoader, num_epoch_steps, table_steps
from alignlab.data.settings import PlanSettings
from alignlab.losses import group, preference
from alignlab.losses.divergence import reverse_kl
from alignlab.losses.kto import kto
from alignlab.losses.sft import nll
from alignlab.methods.base import Factories
from alignlab.methods.cpo import CPO
from alignlab.methods.dpo import DPO
from alignlab.methods.group_dpo import GroupDPO
from alignlab.methods.kto import KTO
from alignlab.methods.orpo import ORPO
from alignlab.methods.pretrain import Pretrain
from alignlab.methods.reward_model import RewardModel
from alignlab.methods.sft import SFT
from alignlab.methods.simpo import SimPO
from alignlab.models import packed_attention  # noqa: F401  (registers the packed attention)
from alignlab.models.activation_offloading import offload_activations
from alignlab.models.compiled import compile_blocks
from alignlab.models.heads import draw_head
from alignlab.types.rows import Demonstration, Preference, Prompt, Text, TokenRow, Unpaired
from tests.methods.prompts import ONLINE, PromptData, made, make_prompt

REFERENCE = {
    "reference": "initial",
    "reference_decay": 0.9,
    "reference_every_n_steps": 2,
    "precompute_reference": False,
}
SIGMOID = {"sigmoid": functools.partial(preference.sigmoid, label_smoothing=0.0)}
PAIRS = {
    "divergence": reverse_kl,
    "length_desensitisation": 1.0,
    "weighting": "none",
    "loss_weights": None,
    "weight_column": None,
}
HINGE = functools.partial(group.group_hinge, margin=1.0, inverse_temperature=None)
METHODS = {
    "sft": functools.partial(made, SFT, loss=nll, reduction="token", weight_column=None, neftune_alpha=0.0),
    "sft_by_sequence": functools.partial(
        made, SFT, loss=nll, reduction="sequence", weight_column="worth", neftune_alpha=0.0
    ),
    "pretrain": functools.partial(made, Pretrain),
    "dpo": functools.partial(made, DPO, beta=0.5, loss=SIGMOID, **PAIRS, **REFERENCE),
    "dpo_with_sft": functools.partial(
        made,
        DPO,
        beta=0.5,
        loss={**SIGMOID, "sft": preference.sft},
        **{
            **PAIRS,
            "loss_weights": [0.8, 0.2],
            "weighting": "wpo",
            "length_desensitisation": 0.5,
            "weight_column": "worth",
        },
        **REFERENCE,
    ),
    "dpo_ema": functools.partial(made, DPO, beta=0.5, loss=SIGMOID, **PAIRS, **{**REFERENCE, "reference": "ema"}),
    "group_dpo": functools.partial(
        made, GroupDPO, beta=0.5, loss=HINGE, length_normalised=False, weight_column=None, **REFERENCE
    ),
    "orpo": functools.partial(made, ORPO, beta=0.5, weight_column=None),
    "simpo": functools.partial(
        made, SimPO, beta=2.0, margin=0.5, alpha=0.0, label_smoothing=0.0, sft_weight=0.1, weight_column=None
    ),
    "cpo": functools.partial(made, CPO, beta=0.5, loss=SIGMOID, sft_weight=1.0, weight_column=None),
    "kto": functools.partial(
        made, KTO, beta=0.5, loss=kto, desirable_weight=1.0, undesirable_weight=1.3, weight_column=None, **REFERENCE
    ),
    "reward_model": functools.partial(made, RewardModel, margin_column=None, weight_column=None, centring=0.1),
    **ONLINE,
}


def class_of(name):
    """The class of a toy method."""
    return METHODS[name].args[0]


class Rows(list):
    """Token rows in memory, as a table."""

    @property
    def lengths(self):
        return np.array([len(row.tokens) for row in self])

    @property
    def weight_column(self):
        return "worth" if "worth" in self[0].columns else None

    key, counts, longest_sequence = "toy", None, 60


def make_rows(num_rows=13, seed=0):
    """Ragged rows: a prompt and a completion of 1 to 30 tokens each, some targets masked."""
    draw = torch.Generator().manual_seed(seed)
    return Rows(_row(index, draw, 1) for index in range(num_rows))


def rows_for(name, num_rows=13):
    """Rows of the kind that a method trains on: for groups one chosen and one to three rejected completions.

    If the method weighs rows, they have weights, and so have the tokens of demonstrations.
    """
    rows = _rows_for(name, num_rows)
    if METHODS[name].keywords.get("weight_column") is None:
        return rows
    return Rows(_weighted(index, row, class_of(name).weighs_turns) for index, row in enumerate(rows))


def _weighted(index, row, weighs_turns):
    weights = [(0.5 if place % 7 < 3 else 2.0) * flag for place, flag in enumerate(row.supervised)]
    changes = {"weights": weights} if weighs_turns and index % 3 else {}
    return dataclasses.replace(row, columns=row.columns | {"worth": 0.25 + index % 4}, **changes)


def _rows_for(name, num_rows):
    draw = torch.Generator().manual_seed(0)
    kind = KINDS[class_of(name).row_kind]
    if kind == "prompts":
        return Rows(make_prompt(index, draw) for index in range(num_rows))
    if kind == "groups":
        return Rows(_row(index, draw, 2 + index % 3) for index in range(num_rows))
    rows = make_rows(num_rows)
    if kind == "verdicts":
        rows = Rows(dataclasses.replace(row, columns={"desirable": i % 3 > 0}) for i, row in enumerate(rows))
        return WithMismatched(rows, max_tokens=60)
    return rows


KINDS = {
    Preference: "groups",
    Unpaired: "verdicts",
    Demonstration: "demonstrations",
    Text: "demonstrations",
    Prompt: "prompts",
}


def _row(index, draw, num_completions):
    prompt, *completions = torch.randint(1, 30, (1 + num_completions,), generator=draw).tolist()
    tokens = torch.randint(1, 64, (prompt + sum(completions),), generator=draw).tolist()
    supervised = [False] * prompt
    for completion in completions:
        supervised += (torch.rand(completion, generator=draw) > 0.3).tolist()
        supervised[-1] = True
    return TokenRow(tokens, supervised, [[prompt, *completions]], f"row {index}", {"row": index})


def make_policy(dropout=0.0, head="language_model"):
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
        num_labels=1,
    )
    if head == "language_model":
        return LlamaForCausalLM._from_config(config, attn_implementation="packed")
    model = LlamaForSequenceClassification._from_config(config, attn_implementation="packed")
    draw_head(model)
    return model


def make_fast_policy(head="language_model"):
    """The same policy with what makes it faster or smaller: compiled, recomputed and offloaded blocks."""
    model = make_policy(head=head)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    compile_blocks(model)
    offload_activations(model)
    return model


def make_method(name, optimizer=torch.optim.SGD, lr=0.5, clip=None, packing=True, policy=None, **changes):
    """A method over the tiny policy with a constant learning rate; further words change its own settings."""
    policy = policy or functools.partial(make_policy, head=class_of(name).head)
    factories = Factories(
        make_policy=policy,
        open_model=lambda path: policy(),
        open_reward_model=lambda path: make_policy(head="reward"),
        make_optimizer=functools.partial(optimizer, lr=lr),
        make_scheduler=lambda optimizer, num_training_steps: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1),
        gradient_clip_val=clip,
        packing=packing,
    )
    return METHODS[name](factories=factories, **changes)


def spoiled(method, factor, steps):
    """The method with the sums of its losses multiplied in some steps, which count from 0."""
    compute = method.compute_loss

    def compute_loss(batch):
        output, times = compute(batch), factor if method.progress.step in steps else 1.0
        return dataclasses.replace(output, terms=[term * times for term in output.terms])

    method.compute_loss = compute_loss
    method.checks_gradients = factor != 0  # else tensors without a gradient are refused in the first step
    return method


def make_loader(rows, batch_size_per_device, *, packing=True, num_steps=4, rank=0, num_ranks=1, workers=0, **changes):
    """Steps of 8 rows; 13 rows make a short last window of 5. Of prompts the data that their method rolls out."""
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
    if not any(any(row.supervised) for row in rows):
        return PromptData(rows, settings, packing, num_steps)
    steps = functools.partial(table_steps, rows, settings, rank, num_ranks)
    options = {"num_workers": workers, "resumable": True, "weight_column": getattr(rows, "weight_column", None)}
    return StepLoader(steps, num_steps=num_steps, packing=packing, pad_token_id=0, **options)


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
    data = {"datamodule" if isinstance(loader, PromptData) else "train_dataloaders": loader}
    trainer.fit(method, **data, ckpt_path=resume, weights_only=True)
    vector = torch.cat([p.detach().flatten() for p in method.policy.parameters()]) if weights else None
    return vector, history.steps


class History(lightning.Callback):
    """Keeps what every step logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_index):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


__all__ = ["METHODS", "fit", "make_loader", "make_method", "make_policy", "make_rows", "num_epoch_steps", "rows_for"]
