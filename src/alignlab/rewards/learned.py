"""A trained reward model as a reward. It reads prompt and completion with its own chat template and tokenizer.

1. Its weights are loaded when the method is built, not at the first call: a wrong path is refused before the run
   begins, and ZeRO-3, which would shard a model that is loaded later, does not shard it.
2. Equal texts get exactly equal rewards, whatever else is in the batch.
"""

import logging
import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from jinja2 import TemplateError
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from alignlab.data.batching.collate import collate
from alignlab.data.settings import TokenSettings
from alignlab.data.table.counts import Dropped
from alignlab.data.tokenise.context import derive_context
from alignlab.data.tokenise.encode import encode, guard_dialogue
from alignlab.data.tokenise.rows import tokenize
from alignlab.data.tokenise.templates import render
from alignlab.data.tokenise.truncate import truncate
from alignlab.errors import InputError
from alignlab.models.reward import context_of, open_reward_model, rewards_of
from alignlab.types.batch import move
from alignlab.types.dtypes import Dtype
from alignlab.types.rows import Message, TokenRow, Unpaired

log = logging.getLogger(__name__)

KEY = "method.reward.reward_model"

Encode = Callable[[Unpaired, PreTrainedTokenizerBase, TokenSettings], TokenRow | Dropped]


class LearnedReward:
    """The score of a reward model.

    Args:
        path: Run, model or adapter folder, or hub id, of a model that returns one number per sequence.
        batch_size: Number of sequences per forward pass.
        dtype: Number format of the weights.
        device: Device of the model; None for the device of the run.
        chat_template: ``auto`` for the template of its tokenizer, or a value of ``data.chat_template``.
        read_at: Token whose score is read. ``turn_end``: the last token of the completion's turn, as in training by
            ``method=reward_model``; ``text_end``: the last token that the template writes, as models trained elsewhere
            expect it of ``apply_chat_template``.

    Raises:
        InputError: The path holds no reward model, or its tokenizer has no usable chat template.
    """

    def __init__(
        self,
        *,
        path: str,
        batch_size: Annotated[int, Field(ge=1)],
        dtype: Dtype,
        device: str | None,
        chat_template: str,
        read_at: Literal["turn_end", "text_end"],
    ):
        self.model, self.tokenizer = open_reward_model(path, dtype, f"{KEY}.path")
        self.batch_size, self.device, self.encode = batch_size, device, ENCODERS[read_at]
        self.settings = TokenSettings(
            chat_template=chat_template,
            chat_template_kwargs={},
            special_tokens=None,
            loss_on="assistant",
            loss_on_reasoning=True,
            max_tokens_per_sequence=context_of(self.model) or sys.maxsize,
            truncation="drop",
            max_cut_fraction=1.0,
            max_dropped_fraction=1.0,
            bad_rows="drop",
            cross_document_attention=False,
            number_columns=(),
            weight_column=None,
            weighs_turns=False,
        )
        self.one_at_a_time = threading.Lock()  # an abandoned call may still compute
        self._check_template(f"{KEY}.path={path}")
        self.to("cpu")

    def to(self, device: str | torch.device) -> None:
        """Move the model to the device of the run, unless ``device`` names another."""
        self.model.to(self.device or device)

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """Score completions. A completion that cannot be scored gets NaN and a warning is logged.

        Args:
            completions: Texts of the completions. Length S.
            prompts: Prompt of each completion, as messages or as a text. Length S.
            columns: Ignored.
        """
        rows = [self._row(*pair) for pair in zip(prompts, completions, strict=True)]
        self._warn([row for row in rows if isinstance(row, Dropped)], len(rows))
        tokens = [None if isinstance(row, Dropped) else tuple(row.tokens) for row in rows]
        distinct = sorted(dict.fromkeys(one for one in tokens if one), key=len)
        with self.one_at_a_time:
            scores = dict(zip(distinct, self._scores(distinct), strict=True))
        return [scores.get(one, math.nan) for one in tokens]

    def _row(self, prompt: str | Sequence[Message], completion: str) -> TokenRow | Dropped:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turn = {"role": "assistant", "content": completion}
        row = Unpaired(origin="a completion", prompt=tuple(messages), completion=(turn,), desirable=True)
        return self.encode(row, self.tokenizer, self.settings)

    def _check_template(self, asked: str) -> None:
        if self.settings.chat_template == "auto" and not self.tokenizer.chat_template:
            why = "its tokenizer has no chat template, and with another one than in training its scores mean nothing"
            raise InputError(asked, why, f"Type {KEY}.chat_template=chatml, plain, none or a jinja file")
        try:
            probe = self._row("0", "1")
        except TemplateError as error:
            probe = Dropped("", "", detail=str(error))
        if isinstance(probe, Dropped):
            raise InputError(asked, probe.detail, f"Type {KEY}.read_at=text_end, or {KEY}.chat_template=FILE")

    def _scores(self, sequences: Sequence[tuple[int, ...]]) -> list[float]:
        scores, device = [], next(self.model.parameters()).device
        for start in range(0, len(sequences), self.batch_size):
            some = sequences[start : start + self.batch_size]
            rows = [_plain_row(list(tokens), "") for tokens in some]
            batch = move(collate(rows, packing=False, pad_token_id=self.tokenizer.pad_token_id or 0), device)
            scores += rewards_of(self.model, batch).tolist()
        return scores

    def _warn(self, dropped: Sequence[Dropped], num_completions: int) -> None:
        if not dropped:
            return
        limit, longest = self.settings.max_tokens_per_sequence, max(row.tokens for row in dropped)
        why = f"up to {longest} tokens, and the model has {limit} positions: lower rollout.max_completion_tokens"
        why = next((row.detail for row in dropped if row.detail), why)
        log.warning("reward model: %d of %d completions cannot be read: %s", len(dropped), num_completions, why)


def _whole_text(row: Unpaired, tokenizer: PreTrainedTokenizerBase, settings: TokenSettings) -> TokenRow | Dropped:
    """Tokenise everything that the template writes, such that no content can act as a special token."""
    context = derive_context(tokenizer, settings, str(tokenizer.chat_template))
    messages: Any = [dict(message) for message in (*row.prompt, *row.completion)]
    guard = None
    if context.template.name != "none":
        messages, _, guard = guard_dialogue(messages, None, context.control)
    text = render(context.template, tokenizer, messages)
    whole = _plain_row(encode(text, tokenizer, guard), row.origin)
    return truncate(whole, settings.max_tokens_per_sequence, settings.truncation)


def _plain_row(tokens: list[int], origin: str) -> TokenRow:
    return TokenRow(tokens, [False] * len(tokens), [[0, len(tokens)]], origin)


ENCODERS: dict[str, Encode] = {"turn_end": tokenize, "text_end": _whole_text}
"""Functions that tokenise a prompt with its completion, by ``read_at``."""
