"""Prompts in memory, a tokenizer of numerals and a cheap reward: what methods that sample are tested with."""

import functools
from types import SimpleNamespace

import lightning
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignlab.config.signatures import with_settings
from alignlab.data.datamodule import DataModule
from alignlab.data.tokenise.templates import NAMED, choose_template
from alignlab.data.tokenise.turn_ends import stop_tokens
from alignlab.losses.policy_gradient import clipped
from alignlab.methods.grpo import GRPO
from alignlab.methods.ppo import PPO
from alignlab.methods.rloo import RLOO
from alignlab.rewards.scorer import Limits
from alignlab.rollout.sampler.sampler import PolicySampler
from alignlab.types.rows import TokenRow

VOCABULARY_SIZE = 64


def even(completions, prompts, **columns):
    """The share of even numbers; nothing for a text without any number."""
    numbers = [[int(word) for word in text.split()] for text in completions]
    return [sum(number % 2 == 0 for number in some) / len(some) if some else None for some in numbers]


even.own_process = False  # which would import all that this module does


def make_sampler(**changes):
    """A sampler; a number with a 7 in it ends a completion, so that lengths differ."""
    settings = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_completion_tokens": 10,
        "stop_strings": ["7"],
        "batch_size": 16,
        "dtype": None,
    }
    return PolicySampler(**{**settings, **changes})


def made(kind, **settings):
    """A method made of settings as a config has them, one by one."""
    return kind(**with_settings(kind, settings))


LOSS = functools.partial(clipped, clip_low=0.2, clip_high=0.2, dual_clip=None, ratio_level="token")
SAMPLED = {
    "sampler": make_sampler(),
    "reward": {"even": even},
    "reward_weights": None,
    "reward_special_tokens": [],
    "reward_limits": Limits(timeout_seconds=30, num_retries=0, default=None, max_failed_rollouts=3),
    "reward_kl_coef": 0.0,
    "reward_kl_target": None,
    "num_completions": 3,
    "num_iterations": 1,
    "steps_per_rollout": 1,
    "group_filter": "keep",
    "max_resample_rounds": 0,
    "truncated": "keep",
    "truncation_penalty": 0.0,
    "right_reward": 1.0,
    "reference": "initial",
    "reference_decay": 0.9,
    "reference_every_n_steps": 2,
}
"""Settings of every method that samples."""
ONLINE = {
    "grpo": functools.partial(
        made,
        GRPO,
        **{**SAMPLED, "steps_per_rollout": 2},
        loss=LOSS,
        normaliser="token",
        estimator="grpo",
        scale="group",
        aggregation="sum_then_normalize",
        num_picked=1,
        kl_coef=0.1,
        kl_estimator="k3",
        kl_gradient="importance",
        entropy_coef=0.01,
        top_entropy_quantile=1.0,
        off_policy_threshold=None,
        importance_cap=2.0,
    ),
    "rloo": functools.partial(
        made,
        RLOO,
        **{**SAMPLED, "reward_kl_coef": 0.1, "num_iterations": 2},
        loss=functools.partial(LOSS, ratio_level="sequence_sum"),
        normaliser="sequence",
        scale="none",
    ),
    "ppo": functools.partial(
        made,
        PPO,
        **{**SAMPLED, "reward_kl_coef": 0.1, "reward_kl_target": 0.5, "num_iterations": 2},
        loss=LOSS,
        normaliser="token",
        critic="shared",
        critic_lr_factor=2.0,
        value_coef=0.1,
        clip_value=0.2,
        gamma=1.0,
        gae_lambda=0.95,
        whiten_rewards=False,
        whiten_advantages=True,
        entropy_coef=0.01,
    ),
}
ONLINE["ppo_separate"] = functools.partial(ONLINE["ppo"], critic="separate")


@functools.cache
def make_tokenizer():
    """One token per number below 64; 0 is padding, 63 ends a text."""
    backend = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY_SIZE)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="0", eos_token=str(VOCABULARY_SIZE - 1))
    tokenizer.chat_template = NAMED["none"]
    return tokenizer


def as_rows(prompts):
    """Prompts of tokens as rows, which samplers take."""
    return [TokenRow(list(one), [False] * len(one), [[len(one)]], "") for one in prompts]


def make_prompt(index, draw):
    """A prompt of 1 to 12 tokens."""
    size = int(torch.randint(1, 13, (1,), generator=draw))
    tokens = torch.randint(1, VOCABULARY_SIZE, (size,), generator=draw).tolist()
    record = {"prompt": [{"role": "user", "content": " ".join(map(str, tokens))}], "columns": {}}
    return TokenRow(tokens, [False] * size, [[size]], f"prompt {index}", record=record)


class PromptData(lightning.LightningDataModule):
    """The part of the data module that methods with a rollout use, over prompts in memory.

    Args:
        rows: Prompts with their lengths.
        plan: How they become steps.
        packing: Flat micro-batches.
        num_steps: Of the run.
    """

    def __init__(self, rows, plan, packing, num_steps):
        super().__init__()
        self.train, self.plan, self.num_steps = rows, plan, num_steps
        self.load, self.tokens = SimpleNamespace(packing=packing), SimpleNamespace(chat_template="auto")
        self.tokenizer = make_tokenizer()

        self.stop_tokens = stop_tokens(self.tokenizer, choose_template(self.tokenizer, "auto"))

    window = DataModule.window

    def __len__(self):
        return self.num_steps

    def train_dataloader(self):
        """Steps made of what the policy samples."""
        method = self.trainer.lightning_module
        return method.rollout.loader(self, method, self.num_steps)
