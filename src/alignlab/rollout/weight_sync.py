"""What a sampler with a copy of the policy needs before a rollout: its weights, and log-probs to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignlab.data.batching.collate import collate
from alignlab.errors import InputError
from alignlab.models.scoring import token_scores
from alignlab.rollout.learner import Learner
from alignlab.rollout.weights import Write, current_weights, initial_weights
from alignlab.types.adapted import is_adapted
from alignlab.types.batch import MicroBatch, move
from alignlab.types.rows import TokenRow


@dataclass(frozen=True)
class PolicySource:
    """The policy, for a separate sampling engine. All ranks must call its methods.

    Args:
        learner: The method, which has the policy.
        tokenizer: Tokenizer, saved with the initial weights.
        packing: Whether micro-batches are flat, without padding, instead of padded.
        prompt: Token ids of the prompt of the probe, by which engine and trainer are compared.
        stop_tokens: Tokens that end a completion.
        log_dir: Folder for the logs of servers.
    """

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    packing: bool
    prompt: Sequence[int]
    stop_tokens: Sequence[int]
    log_dir: Path

    def initial_weights(self) -> str | Write:
        """The weights that an engine starts with; see ``weights.initial_weights``."""
        return initial_weights(self.learner.policy, self.learner.sharding, self.tokenizer)

    def current_weights(self) -> Write:
        """The current weights of the policy, or of its adapter; see ``weights.current_weights``."""
        return current_weights(self.learner.policy, self.learner.sharding)

    @property
    def lora_rank(self) -> int | None:
        """Largest rank of the policy's LoRA adapter; ``None`` without an adapter.

        Raises:
            InputError: The policy has another kind of adapter.
        """
        return _rank_of_adapter(self.learner.policy)

    @torch.no_grad()
    def logps(self, prompt: list[int], completion: list[int]) -> list[float]:
        """Log-probs of the tokens of a completion in the training forward, at temperature 1."""
        lengths = [len(prompt), len(completion)]
        supervised = [False] * lengths[0] + [True] * lengths[1]
        row = TokenRow([*prompt, *completion], supervised, [lengths], "the probe")
        batch = move(collate([row], self.packing, self.tokenizer.pad_token_id or 0), self.learner.device)

        def score(batch: MicroBatch) -> Tensor:
            return token_scores(self.learner.policy, batch).logps

        with self.learner.scoring_mode():
            return self.learner.sharding.forward(score, batch).tolist()


def _rank_of_adapter(policy: nn.Module) -> int | None:
    if not is_adapted(policy):
        return None
    config = policy.active_peft_config
    if config.peft_type != "LORA" or config.use_dora:
        kind = "DoRA" if config.peft_type == "LORA" else config.peft_type.value
        why = f"the policy has a {kind} adapter, and vLLM supports LoRA only"
        raise InputError("rollout=vllm", why, "Type rollout=hf, or merge the adapter first")
    return max([config.r, *(config.rank_pattern or {}).values()])
