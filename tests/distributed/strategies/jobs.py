"""What a rank does for one cell of the matrix: build the toy policy, train, export, compute logits."""

import functools
import json
import os
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tests.methods.prompts import as_rows, make_sampler, make_tokenizer
from tests.methods.toy import class_of, fit, make_loader, make_method, make_policy, rows_for, spoiled

from alignlab.callbacks.checkpoint import Checkpoint
from alignlab.cli.composition.compose import compose
from alignlab.config.build import build
from alignlab.models.adapters import attach, reattach
from alignlab.models.export import logits, save
from alignlab.models.load import locate, open_weights
from alignlab.run_folder.storage import open_checkpoint

EXAMPLE = {"input_ids": torch.arange(5, 21)[None]}
# Adam divides a gradient by its own size, so by default one that is mere rounding moves its weight as far as any other.
# In PPO, LoRA's first matrix begins with gradients of such a size, as its second begins at zero.
ADAMW = functools.partial(torch.optim.AdamW, eps=1e-6)
OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.5), "adamw": (ADAMW, 1e-2)}
# Of methods that divide by lengths or variances, whose small gradients AdamW would turn into steps of its full rate.
OF_SMALL_GRADIENTS = OPTIMIZERS | {"adamw": (functools.partial(torch.optim.AdamW, eps=1e-4), 1e-2)}


class NoTokenizer:
    """Stands where a tokenizer is saved beside weights."""

    def save_pretrained(self, folder):
        """Write nothing."""


def write_base(folder):
    """The toy policy as a folder, for adapters that must name their base."""
    save(make_policy(), NoTokenizer(), folder)
    return str(folder)


def choices(peft, strategy, **changes):
    """The nodes of an adapter and a strategy as they are composed, with what the pair asks for."""
    names = {"full": "none"}
    words = [f"strategy={strategy}", f"peft={names.get(peft, peft)}"]
    words += [f"strategy.{key}={json.dumps(value)}" for key, value in changes.items()]
    config = OmegaConf.to_container(compose(words), resolve=True)
    return config["peft"], config["strategy"]


def make_adapted(base, peft, head):
    """The toy policy with the adapter of a node and the head that a method asks for."""
    torch.manual_seed(7)
    node = dict(peft or {})
    quantization = build("peft.quantization", node.pop("quantization", None))
    policy = open_weights(locate(base), torch.float32, "packed", quantization=quantization, head=head)
    return attach(policy, build("peft", node)) if node else policy


def reopen(folder, peft, method):
    """What a process that never saw the training reads."""
    place, node = locate(str(folder)), choices(peft, "single")[0] or {}
    options = {"quantization": build("peft.quantization", node.get("quantization")), "head": class_of(method).head}
    model = open_weights(place, torch.float32, "packed", **options)
    return reattach(model, place.adapter) if place.adapter else model


def train(
    method, peft, strategy, *, base, optimizer="adamw", rows_at_once=2, num_steps=5, clip=0.5, to=None,
    checkpoints=None, resume=None, changes=None, prompts=(), spoil=None, rank=0, num_ranks=1, **options,
):  # fmt: skip
    """Train one cell, and write the model to a folder.

    Returns:
        Metrics by step, whole weights (rank 0), logits, and the prompts' most probable completions.
    """
    optimizers = OF_SMALL_GRADIENTS if method.startswith(("ppo", "simpo")) else OPTIMIZERS
    kind, lr = optimizers[optimizer] if isinstance(optimizer, str) else optimizer
    adapter, spread_node = choices(peft, strategy, **(changes or {}))
    policy = functools.partial(make_adapted, base, adapter, class_of(method).head)
    made = make_method(method, optimizer=kind, lr=lr, clip=clip, policy=policy)
    made = spoiled(made, *spoil) if spoil else made
    loader = make_loader(rows_for(method), rows_at_once, num_steps=num_steps, rank=rank, num_ranks=num_ranks)
    chosen = build("strategy", spread_node)
    callbacks = (
        [Checkpoint(folder=Path(checkpoints), every_n_steps=2, every_n_epochs=None, keep_last=9, additions=())]
        if checkpoints
        else []
    )
    resume = resume and open_checkpoint(Path(resume)).state
    options |= {"enable_checkpointing": bool(callbacks), "callbacks": callbacks, "resume": resume}
    _, steps = fit(made, loader, strategy=chosen, devices=num_ranks, weights=False, **options)
    sharding = made.sharding
    answers = sharding.forward(logits, made.policy, EXAMPLE)
    with sharding.whole(made.policy):
        completions = complete(made.policy, prompts)
    whole = sharding.full_state_dict(made.policy)
    whole = made.policy.state_dict() if whole is None else whole
    if rank == 0 and to:
        save(made.policy, NoTokenizer(), Path(to), whole)
    return {
        "steps": steps,
        "weights": {name: tensor.clone() for name, tensor in whole.items()} if rank == 0 else {},
        "logits": answers,
        "completions": completions,
    }


def complete(policy, prompts):
    """The most probable completion of each prompt, tokens; two at once, so that others join while some go on."""
    greedy = make_sampler(temperature=0.0, max_completion_tokens=14, stop_strings=[], batch_size=2)
    options = {"num_completions": 1, "stop_tokens": [3], "tokenizer": make_tokenizer()}
    return greedy(policy, as_rows(prompts), **options, generator=torch.Generator()).token_lists()


def train_rank(*arguments, **options):
    """``train`` as one rank of a job."""
    return train(*arguments, **options, rank=int(os.environ["RANK"]), num_ranks=int(os.environ["WORLD_SIZE"]))
