"""Two plain updates of a real method, built from its config, and the same two updates one sequence at a time.

The tokenizer has a token per letter, so that the slow side reads the rows of a file without any of the framework: a
completion is its letters and the end of text. The slow side computes in float64, from the weights before training.
"""

import copy
import functools
import json
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from alignlab.assemble import make_method, open_model_and_data
from alignlab.cli.composition.compose import compose
from alignlab.config import compat, schema

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAD, END = len(LETTERS), len(LETTERS) + 1
LR, LAST = 0.5, 0.6
"""Learning rate of the first update, and the share of it that is left for the second."""

WORDS = [
    "model=scratch", "model.chat_template=null", "model.config.hidden_size=16", "model.config.intermediate_size=24",
    "model.config.num_hidden_layers=2", "model.config.num_attention_heads=2", "model.config.num_key_value_heads=1",
    "model.config.initializer_range=0.3", "model.seed=3", "data=jsonl", "data.validation_size=null",
    "data.chat_template=none", "data.order=as_is", "data.global_batch_size=4", "data.batch_size_per_device=3",
    "data.max_tokens_per_sequence=64", "data.tokenize_workers=0", "optimizer=sgd", "optimizer.momentum=0",
    f"optimizer.lr={LR}", "scheduler=linear", "scheduler.warmup_steps=0", f"scheduler.min_lr_ratio={2 * LAST - 1:g}",
    "trainer.max_steps=2", "trainer.gradient_clip_val=null", "trainer.accelerator=cpu", "logger=none", "callbacks=none",
]  # fmt: skip
GROUPS = ("method", "model", "peft", "data", "rollout", "optimizer", "scheduler", "logger", "callbacks")
UNCOUNTED = ("train/tokens_per_second", "train/step_seconds", "train/mfu", "time/", "progress/")
"""Logged values that no loss decides."""


class Share:
    """A reward: the share of some letters; nothing of a text that is shorter than ``least``."""

    own_process = False  # which would import all that this module does

    def __init__(self, *, letters: str, least: int):
        self.letters, self.least = letters, least

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        return [share(text, self.letters, self.least) for text in completions]


def share(text, letters, least):
    """What ``Share`` gives a text."""
    return sum(letter in letters for letter in text) / len(text) if len(text) >= max(least, 1) else None


def save_tokenizer(folder):
    """A token per letter, one for padding and one for the end."""
    backend = Tokenizer(models.WordLevel({**{a: i for i, a in enumerate(LETTERS)}, "<pad>": PAD, "<end>": END}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)


def ids(text):
    """Token ids of letters."""
    return [LETTERS.index(letter) for letter in text]


@dataclass
class Run:
    """What two updates left.

    Args:
        config: Of the run.
        method: Trained.
        start: Weights of policy and critic before training, by name.
        end: Weights after training, by name.
        steps: Metrics of every step.
        batches: Every step as the method got it.
        rollouts: For every step the rollout that it came from, if the method samples.
    """

    config: dict[str, Any]
    method: Any
    start: dict[str, torch.Tensor] = field(default_factory=dict)
    end: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    rollouts: list[Any] = field(default_factory=list)


class Log(Logger):
    """Keeps what every step logs."""

    name = version = "log"

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_hyperparams(self, *args, **kwargs):
        """Nothing to keep."""

    def log_metrics(self, metrics, step=None):
        """One step."""
        self.steps.append({name: value for name, value in metrics.items() if name != "epoch"})


class Recorder(lightning.Callback):
    """Keeps weights and rollouts; draws the value head of a critic, which would be 0 at first."""

    def __init__(self, run):
        self.run = run

    def on_fit_start(self, trainer, method):
        if hasattr(method, "critic"):
            draw = torch.Generator().manual_seed(8)
            with torch.no_grad():
                method.critic.head.weight.normal_(std=0.3, generator=draw)
                method.critic.head.bias.fill_(0.1)
        self.run.start = self._weights(method)

    def on_train_batch_start(self, trainer, method, batch, batch_index):
        self.run.batches.append(batch)
        self.run.rollouts.append(method.rollout and method.rollout.latest)

    def on_fit_end(self, trainer, method):
        self.run.end = self._weights(method)

    def _weights(self, method):
        critic = copied(method.critic) if hasattr(method, "critic") else {}
        return copied(method.policy) | {f"critic.{name}": weight for name, weight in critic.items()}


def copied(module):
    """Weights by name, in float64."""
    return {name: weight.detach().double().clone() for name, weight in module.named_parameters()}


@functools.cache
def composed(*groups):
    """The config of some options."""
    return compose(groups)


def config_of(*words):
    """The config of a command line; one composition serves all that choose the same options of its groups."""
    chosen = [word for word in words if "/" in word.split("=")[0] or word.split("=")[0] in GROUPS]
    config = copy.deepcopy(composed(*chosen))
    for word in words:
        if word not in chosen:
            key, value = word.split("=", 1)
            OmegaConf.update(config, key, yaml.safe_load(value), force_add=True)
    return schema.check(config)


def make(folder, rows, *words):
    """The config, the method and its data, all from a config."""
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = [*WORDS, f"model.tokenizer={folder}/tokenizer", f"data.path={folder}/rows.jsonl"]
    config = config_of(*given, f"data.cache_dir={folder}/cache", *words)
    compat.check(config)
    model, data = open_model_and_data(config)
    return config, make_method(config, model, data), data


def train(folder, rows, *words, callbacks=()):
    """Two updates of the method that the words choose."""
    config, method, data = make(folder, rows, *words)
    log = Log()
    run = Run(config, method, steps=log.steps)
    trainer = lightning.Trainer(
        max_steps=data.num_steps,
        accelerator="cpu",
        devices=1,
        logger=log,
        log_every_n_steps=1,
        callbacks=[Recorder(run), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(method, datamodule=data)
    if method.rollout is not None:
        method.rollout.close()
    return run


# --- the slow side ----------------------------------------------------------------------------------------------------


class Slow:
    """A model in float64, asked for one sequence at a time.

    Args:
        config: Of the model of a run.
        weights: By name.
        temperature: Divides the logits.
        kind: Class of the model.
    """

    def __init__(self, config, weights, temperature=1.0, kind=LlamaForCausalLM):
        plain = LlamaConfig(**{k: v for k, v in config.to_dict().items() if not k.startswith(("_", "dtype"))})
        self.model = kind._from_config(plain, attn_implementation="eager").double().eval()
        self.temperature = temperature
        self.set(weights)

    def set(self, weights):
        """Copy weights."""
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(weights[name])

    @property
    def weights(self):
        """Weights by name."""
        return copied(self.model)

    @property
    def parameters(self):
        """All weights."""
        return list(self.model.parameters())

    def predictions(self, prompt, completion):
        """Log-probabilities of the vocabulary at every token of a completion. Shape ``[tokens, V]``."""
        logits = self.model(input_ids=torch.tensor([prompt + completion])).logits[0] / self.temperature
        first = max(len(prompt), 1)
        return logits.log_softmax(-1)[first - 1 : len(prompt) + len(completion) - 1]

    def logps(self, prompt, completion):
        """Log-probability of every token of a completion, as a list."""
        found = self.predictions(prompt, completion)
        labels = completion if prompt else completion[1:]
        return [found[place, token] for place, token in enumerate(labels)]

    def reward(self, prompt, completion):
        """What a reward model gives a completion: its head at the last token."""
        states = self.model.model(input_ids=torch.tensor([prompt + completion])).last_hidden_state
        return self.model.score(states[0, -1])[0]

    def hidden(self, prompt, completion):
        """Hidden states that predict the tokens of a completion. Shape ``[tokens, hidden]``."""
        found = self.model.model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
        return found[len(prompt) - 1 : -1]


def policy_of(run, temperature=1.0):
    """The policy before training, without its adapter if it has one."""
    start = {name.removeprefix("base_model.model.").replace(".base_layer", ""): run.start[name] for name in run.start}
    return Slow(run.method.policy.config, start, temperature)


def reward_model_of(run):
    """The reward model before training."""
    return Slow(run.method.policy.config, run.start, kind=LlamaForSequenceClassification)


def update(loss, parameters, step, clip=None, lr=LR, factors=None):
    """A plain update, each parameter at its factor times the rate; gives the metrics that every step logs."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = sum((g**2).sum() for g in gradients if g is not None) ** 0.5
    lr = lr * (1, LAST)[step]
    share_of_it = 1.0 if clip is None else min(1.0, clip / (norm.item() + 1e-6))
    with torch.no_grad():
        for parameter, gradient, factor in zip(parameters, gradients, factors or [1] * len(parameters), strict=True):
            if gradient is not None:
                parameter -= lr * factor * share_of_it * gradient
    clipped = {} if clip is None else {"train/grad_norm_clipped": min(norm.item(), clip)}
    return {"train/loss": loss.item(), "train/grad_norm": norm.item(), "train/lr": lr, **clipped}


def compare(run, expected, end, tolerance=1e-4):
    """Every logged value of both steps, no more and no fewer, and the weights after both."""
    assert len(run.steps) == len(expected) == 2
    for number, (logged, wanted) in enumerate(zip(run.steps, expected, strict=True)):
        logged = {name: value for name, value in logged.items() if not name.startswith(UNCOUNTED)}
        assert sorted(logged) == sorted(wanted)
        wrong = {
            name: (logged[name], float(value))
            for name, value in wanted.items()
            if not abs(logged[name] - float(value)) <= tolerance * max(1.0, abs(float(value)))
        }
        assert not wrong, f"step {number}, logged and expected: {wrong}"
    assert sorted(run.end) == sorted(end)
    moved = torch.cat([(run.end[name] - run.start[name]).flatten() for name in end])
    slowly = torch.cat([(end[name] - run.start[name]).flatten() for name in end])
    assert slowly.norm() > 1e-3, "nothing was learned"
    assert (moved - slowly).norm() < 5 * tolerance * slowly.norm()


def mean(values):
    """Of a list of numbers."""
    values = list(values)
    return sum(values) / len(values)


def log_sigmoid(value):
    """Log of the logistic function."""
    return -torch.logaddexp(-value, torch.zeros_like(value))


def sigmoid(value):
    """The logistic function."""
    return 1 / (1 + torch.exp(-value))


@functools.cache
def texts(seed, number, shortest=1, longest=7):
    """Random texts."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(shortest, longest + 1, (number,), generator=draw).tolist()
    return ["".join(LETTERS[i] for i in torch.randint(0, 26, (size,), generator=draw).tolist()) for size in sizes]
