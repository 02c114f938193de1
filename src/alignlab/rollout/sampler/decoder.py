"""Token-by-token decoding with a key-value cache.

``SharedDecoder`` stores each prompt once for all its completions, and rows can be added at any time. ``PlainDecoder``
copies the prompt for every completion in the model's own cache, for models that use more than plain attention.
``probe.py`` chooses the decoder of a model.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache

from alignlab.rollout.sampler.cache import SharedPromptCache
from alignlab.rollout.sampler.replay import Replay, can_replay
from alignlab.types.adapted import base_model, is_adapted

MAX_PREFILL_TOKENS = 2**14
"""Maximum number of prompt tokens, including padding, in one forward pass."""

ENDED_SHARE = 0.125
"""Share of ended rows at which they are removed, where that is cheap."""

SHARED = "shared_prompts"
"""Name of the attention function in Transformers; the cache is passed as the keyword ``rollout`` of the forward."""

UNSUPPORTED = ("s_aux", "position_bias")
"""Keywords of layers that use more than scaled and soft-capped dot products."""


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
    """Call ``SharedPromptCache.attend``, with the signature of attention functions in Transformers.

    Raises:
        NotImplementedError: The layer uses attention that the cache does not support.
    """
    unsupported = [name for name in UNSUPPORTED if options.get(name) is not None]
    if unsupported:
        raise NotImplementedError(f"its attention uses {', '.join(unsupported)}")
    rollout.windows.add(sliding_window)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        limits = {"scaling": scaling, "softcap": softcap, "window": sliding_window}
        return rollout.attend(module.layer_idx, query, key, value, **limits), None


AttentionInterface.register(SHARED, shared_prompt_attention)


class Decoder(Protocol):
    """Decodes completions (rows) of the prompts it was made with."""

    can_add_rows: ClassVar[bool]
    """Whether rows can be added while there are others."""

    ended_share: float
    """Share of ended rows at which removing them is worth its cost."""

    def add_rows(self, prompt_index: Sequence[int]) -> Tensor:
        """Add a row for each prompt index, ascending; returns the logits of their first tokens ``[r, V]``."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row ``[R]``; returns the logits of the next ones ``[R, V]``, until the next call."""

    def keep(self, rows: Tensor) -> None:
        """Keep the rows with these indices, ascending ``[r]``, and remove the others."""


class SharedDecoder:
    """Decoder with a ``SharedPromptCache``.

    Args:
        model: In eval mode.
        prompts: Token ids of the prompts, none empty.
        pad_token_id: Padding token, on the left.
    """

    can_add_rows: ClassVar[bool] = True

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad_token_id: int):
        self.model, self.prompts, self.pad_token_id = model, prompts, pad_token_id
        device = device_of(model)
        self.cache = SharedPromptCache(device, has_fixed_shapes=can_replay(device))
        self.cached: list[int] = []
        self.position = torch.zeros(0, dtype=torch.long, device=device)
        self.forward = Replay(self._forward)
        self.ended_share = 2 * ENDED_SHARE if can_replay(device) else ENDED_SHARE  # a step is recorded again

    def add_rows(self, prompt_index: Sequence[int]) -> Tensor:
        """See ``Decoder``. A prompt that is still in the cache is not computed again."""
        for part in _parts(sorted(set(prompt_index) - set(self.cached)), self.prompts):
            cache, chosen = DynamicCache(), [self.prompts[i] for i in part]
            logits, visible, cache = prefill(self.model, chosen, self.pad_token_id, cache)
            self.cache.add_prompts([(layer.keys, layer.values) for layer in cache.layers], visible)
            self.first_logits = torch.cat([self.first_logits, logits]) if self.cached else logits
            self.cached += part
        cached = torch.tensor([self.cached.index(i) for i in prompt_index], device=self.position.device)
        self.cache.add_rows(cached)
        self.position = torch.cat([self.position, self.cache.visible.sum(1)[cached]])
        return self.first_logits[cached]

    def step(self, tokens: Tensor) -> Tensor:
        """See ``Decoder``."""
        self.cache.advance()
        logits = self.forward(tokens, self.cache.version)
        self.position += 1
        return logits

    def _forward(self, tokens: Tensor) -> Tensor:
        self.cache.masks.clear()  # those of a recording that failed were never computed
        inputs = {"input_ids": tokens[:, None], "position_ids": self.position[:, None], "rollout": self.cache}
        with _shared_attention(self.model):
            output = base_model(self.model)(**inputs, use_cache=False)
        return output.logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """See ``Decoder``. The newest prompt stays in the cache for rows that may be added."""
        self.position = self.position[rows]
        kept = sorted(set(self.cache.prompt_index[rows].tolist()) | {len(self.cached) - 1})
        prompts = torch.tensor(kept, device=rows.device)
        self.cache.keep(rows, prompts)
        self.first_logits, self.cached = self.first_logits[prompts], [self.cached[i] for i in kept]


class PlainDecoder:
    """Decoder with the model's own cache. Arguments as for ``SharedDecoder``."""

    can_add_rows: ClassVar[bool] = False
    ended_share: float = ENDED_SHARE

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad_token_id: int):
        self.model, self.prompts, self.pad_token_id = model, prompts, pad_token_id

    def add_rows(self, prompt_index: Sequence[int]) -> Tensor:
        """See ``Decoder``. There must be no rows yet."""
        chosen = sorted(set(prompt_index))
        cache = DynamicCache(config=base_model(self.model).config)
        prompts = [self.prompts[i] for i in chosen]
        logits, self.mask, self.cache = prefill(self.model, prompts, self.pad_token_id, cache)
        rows = torch.tensor([chosen.index(i) for i in prompt_index], device=logits.device)
        self.keep(rows)
        return logits[rows]

    def step(self, tokens: Tensor) -> Tensor:
        """See ``Decoder``."""
        position = self.mask.sum(1)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        inputs = {"input_ids": tokens[:, None], "position_ids": position, "attention_mask": self.mask.long()}
        return base_model(self.model)(**inputs, past_key_values=self.cache, use_cache=True).logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """See ``Decoder``."""
        self.mask = self.mask[rows]
        self.cache.reorder_cache(rows)


def prefill(
    model: nn.Module, prompts: Sequence[Sequence[int]], pad_token_id: int, cache: Cache
) -> tuple[Tensor, Tensor, Cache]:
    """Run prompts through the model.

    Args:
        model: In eval mode. The virtual tokens of prefix tuning come before every prompt and take positions.
        prompts: Token ids of P prompts, none empty.
        pad_token_id: Padding token, on the left.
        cache: An empty cache.

    Returns:
        Logits of the first completion token ``[P, V]``; mask of the columns that are not padding ``[P, W]``, bool; and
        the cache, which is a new one if there are virtual tokens.
    """
    device, width = device_of(model), max(map(len, prompts))
    tokens = torch.tensor([[pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    visible = torch.arange(width, device=device) >= width - lengths[:, None]
    if is_adapted(model) and model.active_peft_config.is_prompt_learning:
        cache = model.get_prompt(len(prompts))
        visible = torch.cat([visible.new_ones(len(prompts), cache.get_seq_length()), visible], dim=1)
    inputs = {"input_ids": tokens, "position_ids": (visible.cumsum(1) - 1).clamp(min=0)[:, -width:]}
    base = base_model(model)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
    output = base(**inputs, attention_mask=visible.long(), past_key_values=cache, use_cache=True, **last)
    return output.logits[:, -1].float(), visible, cache


def device_of(model: nn.Module) -> torch.device:
    """Device of the model."""
    return next(model.parameters()).device


def _parts(chosen: Sequence[int], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Split prompts into parts of at most ``MAX_PREFILL_TOKENS``, or of one prompt."""
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
    """Make the layers of the model call ``shared_prompt_attention`` within the context."""
    config = base_model(model).config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = SHARED
    try:
        yield
    finally:
        config._attn_implementation = before
