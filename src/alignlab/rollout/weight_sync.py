"""What a sampler with a copy of the policy needs before a rollout: weights, and a completion scored by the trainer."""

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
from alignlab.rollout.weights import Write, current_weights, first_weights
from alignlab.types.adapted import is_adapted
from alignlab.types.batch import MicroBatch, move
from alignlab.types.rows import TokenRow


@dataclass(frozen=True)
class PolicySource:
    """The policy as another engine takes it; every rank calls its methods.

    Args:
        learner: Holds the policy.
        tokenizer: Written beside the first weights.
        packing: Whether micro-batches have the packed layout.
        prompt: Token ids by whose completion the two engines are compared.
        stop_tokens: Tokens that end a completion.
        log_dir: Takes what servers print.
    """

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    packing: bool
    prompt: Sequence[int]
    stop_tokens: Sequence[int]
    log_dir: Path

    def first_weights(self) -> str | Write:
        """What an engine starts with; see ``weights.first_weights``."""
        return first_weights(self.learner.policy, self.learner.sharding, self.tokenizer)

    def current_weights(self) -> Write:
        """The policy as it is now, or only its adapter; see ``weights.current_weights``."""
        return current_weights(self.learner.policy, self.learner.sharding)

    @property
    def lora_rank(self) -> int | None:
        """Largest rank of the policy's LoRA; ``None`` without an adapter.

        Raises:
            InputError: The policy has an adapter of another kind.
        """
        return _rank_of_adapter(self.learner.policy)

    @torch.no_grad()
    def logps(self, prompt: list[int], completion: list[int]) -> list[float]:
        """Log-probabilities of a completion's tokens in the training forward, at temperature 1."""
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
        why = f"the policy has a {kind} adapter, and vLLM serves LoRA alone"
        raise InputError("rollout=vllm", why, "Type rollout=hf, or merge the adapter first")
    return max([config.r, *(config.rank_pattern or {}).values()])
