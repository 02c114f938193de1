"""The model as the sampler sees it: prompts in, then one token per row and step.

Two ways with one face. ``SharedDecoder`` keeps a prompt once for all its completions and lets new ones join at any
time; ``PlainDecoder`` gives every completion a copy in the model's own cache, for models that mix tokens by other means
than plain attention. ``probe.py`` tells which one a model can have.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache

from alignlab.rollout.sampler.cache import SharedPromptCache
from alignlab.types.adapted import base_model, is_adapted

MAX_PREFILL_TOKENS = 2**14
"""Prompt tokens, padding included, that go through the model at once."""

SHARED = "shared_prompts"
"""Name under which Transformers finds our attention; the cache travels as the keyword ``rollout`` of the forward."""

UNKNOWN = ("s_aux", "position_bias")
"""Keywords by which a layer asks for more than scaled and capped dot products."""


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rollout: SharedPromptCache,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **options,
) -> tuple[Tensor, None]:
    """``SharedPromptCache.attend`` in the form in which Transformers calls attention functions.

    Raises:
        NotImplementedError: The layer asks for something else besides.
    """
    asked = [name for name in UNKNOWN if options.get(name) is not None]
    if asked:
        raise NotImplementedError(f"its attention uses {', '.join(asked)}")
    rollout.windows.add(sliding_window)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        limits = {"scaling": scaling, "softcap": softcap, "window": sliding_window}
        return rollout.attend(module.layer_idx, query, key, value, **limits), None


AttentionInterface.register(SHARED, shared_prompt_attention)


class Decoder(Protocol):
    """Rows of completions, each of one of the prompts that it was made with."""

    joins: ClassVar[bool]

    def admit(self, owners: Sequence[int]) -> Tensor:
        """Add a row per entry, of the prompt of that number, ascending; logits of their first tokens ``[r, V]``."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row ``[R]``; logits of the next ones ``[R, V]``."""

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but those at these places, ascending ``[r]``."""


class SharedDecoder:
    """Rows over a ``SharedPromptCache``.

    Args:
        model: In eval mode.
        prompts: Token ids, none empty.
        pad_token_id: Filling on the left, masked by position.
    """

    joins: ClassVar[bool] = True

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad_token_id: int):
        self.model, self.prompts, self.pad_token_id = model, prompts, pad_token_id
        self.cache = SharedPromptCache(device_of(model))
        self.held: list[int] = []
        self.position = torch.zeros(0, dtype=torch.long, device=device_of(model))

    def admit(self, owners: Sequence[int]) -> Tensor:
        """See ``Decoder``; a prompt that is still held from earlier rows is not computed again."""
        for part in _parts(sorted(set(owners) - set(self.held)), self.prompts):
            cache, chosen = DynamicCache(), [self.prompts[i] for i in part]
            logits, visible, cache = prefill(self.model, chosen, self.pad_token_id, cache)
            self.cache.add_prompts([(layer.keys, layer.values) for layer in cache.layers], visible)
            self.first = torch.cat([self.first, logits]) if self.held else logits
            self.held += part
        places = torch.tensor([self.held.index(i) for i in owners], device=self.position.device)
        self.cache.add_rows(places)
        self.position = torch.cat([self.position, self.cache.visible.sum(1)[places]])
        return self.first[places]

    def step(self, tokens: Tensor) -> Tensor:
        """See ``Decoder``."""
        self.cache.advance()
        given = {"input_ids": tokens[:, None], "position_ids": self.position[:, None], "rollout": self.cache}
        with _shared_attention(self.model):
            output = base_model(self.model)(**given, use_cache=False)
        self.position = self.position + 1
        return output.logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """See ``Decoder``; the newest prompt is held for rows that may come."""
        self.position = self.position[rows]
        owners = set(self.cache.owner[rows].tolist()) | {len(self.held) - 1}
        prompts = torch.tensor(sorted(owners), device=rows.device)
        self.cache.keep(rows, prompts)
        self.first, self.held = self.first[prompts], [self.held[i] for i in sorted(owners)]


class PlainDecoder:
    """Rows in the model's own kind of cache.

    Args and raises as ``SharedDecoder``.
    """

    joins: ClassVar[bool] = False

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad_token_id: int):
        self.model, self.prompts, self.pad_token_id = model, prompts, pad_token_id

    def admit(self, owners: Sequence[int]) -> Tensor:
        """See ``Decoder``; only while there are no rows."""
        chosen = sorted(set(owners))
        cache = DynamicCache(config=base_model(self.model).config)
        prompts = [self.prompts[i] for i in chosen]
        logits, self.mask, self.cache = prefill(self.model, prompts, self.pad_token_id, cache)
        places = torch.tensor([chosen.index(i) for i in owners], device=logits.device)
        self.keep(places)
        return logits[places]

    def step(self, tokens: Tensor) -> Tensor:
        """See ``Decoder``."""
        position = self.mask.sum(1)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        given = {"input_ids": tokens[:, None], "position_ids": position, "attention_mask": self.mask.long()}
        return base_model(self.model)(**given, past_key_values=self.cache, use_cache=True).logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """See ``Decoder``."""
        self.mask = self.mask[rows]
        self.cache.reorder_cache(rows)


def prefill(
    model: nn.Module, prompts: Sequence[Sequence[int]], pad_token_id: int, cache: Cache
) -> tuple[Tensor, Tensor, Cache]:
    """Run prompts through the model.

    Args:
        model: In eval mode; prefix tuning's virtual tokens stand before every prompt and take positions.
        prompts: Token ids, none empty.
        pad_token_id: Filling on the left.
        cache: Empty.

    Returns:
        Logits of the first completion token ``[P, V]``; which columns of the cache are real ``[P, W]``, bool; and the
        cache itself, which is another one where virtual tokens stand in it.
    """
    device, width = device_of(model), max(map(len, prompts))
    tokens = torch.tensor([[pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    visible = torch.arange(width, device=device) >= width - lengths[:, None]
    if is_adapted(model) and model.active_peft_config.is_prompt_learning:
        cache = model.get_prompt(len(prompts))
        visible = torch.cat([visible.new_ones(len(prompts), cache.get_seq_length()), visible], dim=1)
    given = {"input_ids": tokens, "position_ids": (visible.cumsum(1) - 1).clamp(min=0)[:, -width:]}
    base = base_model(model)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
    output = base(**given, attention_mask=visible.long(), past_key_values=cache, use_cache=True, **last)
    return output.logits[:, -1].float(), visible, cache


def device_of(model: nn.Module) -> torch.device:
    """Where the model takes its tokens."""
    return next(model.parameters()).device


def _parts(chosen: Sequence[int], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The chosen prompts cut into parts of at most ``MAX_PREFILL_TOKENS``, or of one prompt."""
    part, width = [], 0
    for index in chosen:
        width = max(width, len(prompts[index]))
        if part and width * (len(part) + 1) > MAX_PREFILL_TOKENS:
            yield part
            part, width = [], len(prompts[index])
        part.append(index)
    if part:
        yield part


@contextmanager
def _shared_attention(model: nn.Module) -> Iterator[None]:
    """The model's layers call ``shared_prompt_attention``."""
    config = base_model(model).config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = SHARED
    try:
        yield
    finally:
        config._attn_implementation = before
