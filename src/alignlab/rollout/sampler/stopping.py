"""Stopping criteria: a stop token, or a stop string in the text of a completion."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignlab.errors import InputError
from alignlab.rollout.sampler.sampling import SamplingSettings


class Stopping:
    """Finds rows that end with their newest token. Only rows whose token can end a stop string are decoded.

    Args:
        settings: Sampling settings, with stop tokens and stop strings.
        tokenizer: Tokenizer, for stop strings.
        vocab_size: Size of the last axis of the logits.
        device: Device of the tokens.

    Raises:
        InputError: Stop strings without a tokenizer.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        device: torch.device,
    ):
        self.strings, self.tokenizer, self.device = tuple(filter(None, settings.stop_strings)), tokenizer, device
        if self.strings and tokenizer is None:
            raise InputError(
                f"stop_strings={list(self.strings)}", "there is no tokenizer", "Pass the model's tokenizer"
            )
        inside = [token for token in settings.stop_tokens if token < vocab_size]
        self.stops = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.stops[torch.tensor(inside, dtype=torch.long, device=device)] = True
        if self.strings:
            self.may_end = torch.tensor(_may_end(tokenizer, self.strings, vocab_size), device=device)

    def ended(self, tokens: Tensor, completion: Callable[[int], list[int]]) -> Tensor:
        """Whether each row ends with its newest token.

        Args:
            tokens: The newest token of every row. Shape ``[R]``.
            completion: Row → all its tokens, including the newest.

        Returns:
            Shape ``[R]``, bool.
        """
        ended = self.stops[tokens]
        if self.strings:
            for row in (self.may_end[tokens] & ~ended).nonzero()[:, 0].tolist():
                text = self.tokenizer.decode(completion(row), clean_up_tokenization_spaces=False)
                ended[row] = any(string in text for string in self.strings)
        return ended


@lru_cache(maxsize=8)
def _may_end(tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...], vocab_size: int) -> list[bool]:
    """Whether each token's text contains the last character of a stop string, or is part of a character."""
    last = {string[-1] for string in strings} | {"\ufffd"}
    # Decode each token twice, because some tokenizers drop the space at the start of a text.
    texts = tokenizer.batch_decode([[token, token] for token in range(vocab_size)], clean_up_tokenization_spaces=False)
    return [not last.isdisjoint(text) for text in texts]
