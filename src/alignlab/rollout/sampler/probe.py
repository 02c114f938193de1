"""Choice of a decoder: each is tried and compared with the model's own forward, whatever the architecture."""

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.rollout.sampler.decoder import Decoder, PlainDecoder, SharedDecoder, device_of
from alignlab.types.adapted import base_model

log = logging.getLogger(__name__)

# Config keys of architectures that limit their attention to a window.
WINDOWS = ("sliding_window", "attention_chunk_size")

_known: WeakKeyDictionary[nn.Module, type[Decoder]] = WeakKeyDictionary()


@torch.no_grad()
def decoder_for(model: nn.Module) -> type[Decoder]:
    """The fastest decoder that agrees with the model's own forward; tried once per model.

    Args:
        model: In eval mode.

    Raises:
        InputError: No decoder agrees.
    """
    base = base_model(model)
    if base in _known:
        return _known[base]
    reasons = []
    for kind in (SharedDecoder, PlainDecoder):
        reason = _fault(model, kind)
        if reason is None:
            for slower in reasons:
                log.warning("sampling from %s copies every prompt, because %s", type(base).__name__, slower)
            return _known.setdefault(base, kind)
        reasons.append(f"with {kind.__name__} {reason}")
    raise InputError(f"rollout=hf with {type(base).__name__}", "; ".join(reasons), "Type rollout=vllm")


def _fault(model: nn.Module, kind: type[Decoder]) -> str | None:
    """Why a decoder does not work for a model, or None."""
    config = base_model(model).config.get_text_config()
    tokens = (torch.arange(7, 7 + 13 * 12, 13) % config.vocab_size).tolist()
    prompts, completion = [tokens[:5], tokens[5:7]], tokens[7:]
    try:
        decoder = kind(model, prompts, pad_token_id=0)
        ours = _step_by_step(decoder, completion, device_of(model))
        theirs = _at_once(model, prompts, completion)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"it does not run ({type(error).__name__}: {error})"
    narrow = any(getattr(config, key, None) for key in WINDOWS)
    if narrow and isinstance(decoder, SharedDecoder) and not any(decoder.cache.windows):
        return "it limits its attention by a mask alone"  # for sequences longer than the probe
    difference = (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max().item()
    # `not <=` is also true for NaN.
    return f"log-probs differ by {difference:.3g} nats" if not difference <= _tolerance(model) else None


def _step_by_step(decoder: Decoder, completion: list[int], device: torch.device) -> Tensor:
    """Logits after the completion, for two rows of the first prompt and one of the second. Shape ``[3, V]``."""
    logits = decoder.add_rows([0, 0, 1])
    for token in completion:
        logits = decoder.step(torch.full((len(logits),), token, device=device))
    return logits


def _at_once(model: nn.Module, prompts: list[list[int]], completion: list[int]) -> Tensor:
    rows = [torch.tensor([prompts[i] + completion], device=device_of(model)) for i in (0, 0, 1)]
    return torch.cat([model(input_ids=row).logits[:, -1] for row in rows]).float()


def _tolerance(model: nn.Module) -> float:
    """Maximum difference of log-probs that rounding may cause, in nats."""
    narrow = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    narrow = narrow or torch.is_autocast_enabled(device_of(model).type)
    return 0.5 if narrow or getattr(base_model(model).config, "quantization_config", None) else 2e-3
