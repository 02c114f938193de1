"""Score a micro-batch with a model; every method uses these functions.

For a language model, they compute the log-probabilities of the supervised tokens: the vocabulary head is applied only
to the source positions, in chunks, so that the logits ``[B, T, V]`` are never stored. For a reward model, they compute
the scores of the sequences: the head is applied only to their last tokens. The flat and the padded layout differ only
in the inputs of the decoder.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignlab.errors import InputError
from alignlab.models.compiled import uncompiled
from alignlab.models.heads import head_of
from alignlab.models.label_scores import Wanted, label_scores
from alignlab.models.packed_attention import NO_MASK
from alignlab.types.adapted import base_model, is_adapted
from alignlab.types.batch import MicroBatch
from alignlab.types.layout import find_paths, packed_layout, positions

# Logits stored at once: elements of four bytes on a CPU, share of the memory of a GPU. For more, chunks are recomputed
# in the backward pass. Each chunk also converts the matrix of the vocabulary and adds to its gradient.
MAX_LOGITS, SHARE_OF_GPU = 2**26, 1 / 64

# Config keys by which an architecture limits how far back a token attends.
WINDOWS = ("sliding_window", "attention_chunk_size")


class TokenScores(NamedTuple):
    """Scores of the supervised tokens.

    Args:
        logps: Log-probability of each label, float32 at least, carries the gradient. Shape ``[N]``.
        argmax_correct: Whether the label is the most likely token; ties count. Shape ``[N]``, bool.
        entropies: Entropy of each prediction in nats, carries the gradient. Shape ``[N]``, or ``[0]`` if not wanted.
        log_collisions: Log of the sum of squared probabilities. Shape ``[N]``, or ``[0]`` if not wanted.
        hidden: Hidden states that predict the labels, for further heads. Shape ``[N, hidden]``.
    """

    logps: Tensor
    argmax_correct: Tensor
    entropies: Tensor
    log_collisions: Tensor
    hidden: Tensor


def token_scores(
    model: nn.Module,
    batch: MicroBatch,
    max_logits: int | None = None,
    *,
    temperature: float = 1.0,
    want: Collection[Wanted] = (),
) -> TokenScores:
    """Score the supervised tokens of a micro-batch.

    Args:
        model: A causal language model of Transformers, with or without an adapter.
        batch: Flat or padded.
        max_logits: Logits stored at once, in elements; ``None`` for the usual number of the device.
        temperature: Divides the logits; for sampled tokens that of the sampling.
        want: Further quantities to compute; each costs a pass over the logits.

    Returns:
        Scores in the order of ``batch.labels``.
    """
    hidden = last_hidden_state(model, batch.inputs).flatten(0, 1)[batch.source_positions]
    score = partial(_score, vocabulary_head(model), temperature, frozenset(want))
    max_logits = max_logits or _max_logits(hidden.device)
    rows = max(1, max_logits // base_model(model).config.get_text_config().vocab_size)
    if len(hidden) <= rows:
        return TokenScores(*score(hidden, batch.labels), hidden)
    chunks = zip(hidden.split(rows), batch.labels.split(rows), strict=True)
    scored = [checkpoint(score, states, labels, use_reentrant=False) for states, labels in chunks]
    return TokenScores(*(torch.cat(part) for part in zip(*scored, strict=True)), hidden)


def _max_logits(device: torch.device) -> int:
    if device.type != "cuda":
        return MAX_LOGITS
    return int(SHARE_OF_GPU * torch.cuda.get_device_properties(device).total_memory) // 4


def _score(
    head: Callable[[Tensor], Tensor], temperature: float, want: frozenset[str], hidden: Tensor, labels: Tensor
) -> tuple[Tensor, ...]:
    return label_scores(head(hidden), labels, temperature, want)


def sequence_scores(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Score the sequences of a micro-batch at their last tokens.

    Args:
        model: A reward model of Transformers, with or without an adapter.
        batch: Flat or padded.

    Returns:
        Rewards, float32 at least, carry the gradient. Shape ``[S]``.
    """
    hidden = last_hidden_state(model, batch.inputs).flatten(0, 1)[batch.last_positions]
    head = base_model(model).score
    # A number of 16 bits cannot represent relative differences below about a hundredth.
    with torch.autocast(hidden.device.type, enabled=False):
        scores = head(hidden.to(next(head.parameters()).dtype))[:, 0]
    return scores if scores.dtype == torch.float64 else scores.float()


def last_hidden_state(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Run the decoder without its head.

    Args:
        model: A language model or a reward model, with or without an adapter.
        inputs: ``MicroBatch.inputs``: ``input_ids [B, T]``, ``position_ids [B, T]``, and ``layout`` or
            ``attention_mask [B, T]``.

    Returns:
        Shape ``[B, T, hidden]``.
    """
    decoder = base_model(model).get_decoder()
    if "layout" in inputs:
        no_mask = inputs["input_ids"].new_empty(NO_MASK, dtype=torch.bool)
        return decoder(**inputs, attention_mask=no_mask, use_cache=False).last_hidden_state
    if is_adapted(model) and model.active_peft_config.is_prompt_learning and not model._adapters_disabled:
        return _with_virtual_tokens(model, decoder, inputs)
    return decoder(**inputs, use_cache=False).last_hidden_state


def _with_virtual_tokens(model: nn.Module, decoder: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Prefix tuning: pass trained keys and values as a filled cache before every sequence; they occupy positions."""
    num_virtual = model.active_peft_config.num_virtual_tokens
    mask = inputs["attention_mask"]
    given = {
        **inputs,
        "position_ids": inputs["position_ids"] + num_virtual,
        "attention_mask": torch.cat([mask.new_ones(len(mask), num_virtual), mask], dim=1),
    }
    return decoder(**given, past_key_values=model.get_prompt(len(mask)), use_cache=True).last_hidden_state


def vocabulary_head(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The map from hidden states ``[N, hidden]`` to logits ``[N, V]``, with the architecture's scaling of logits."""
    base = base_model(model)
    matrix, config = base.get_output_embeddings(), base.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    # Cohere multiplies by logit_scale, Granite divides by logits_scaling.
    scale = getattr(config, "logit_scale", None) or 1.0
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)

    def head(hidden: Tensor) -> Tensor:
        logits = matrix(hidden)
        logits = logits * scale if scale != 1.0 else logits
        return cap * torch.tanh(logits / cap) if cap else logits

    return head


@torch.no_grad()
def verify(model: nn.Module, packing: bool) -> float:
    """Compare these functions with the model's own forward on two short documents and a prompt with two completions.

    This refuses, before training, a model that mixes tokens by other means than attention (state spaces, convolutions),
    so that documents of a flat batch would affect each other, or that scales its logits in an unknown way.

    Args:
        model: The policy; compared in eval mode, and its mode restored.
        packing: Whether training uses flat batches; otherwise a padded batch is compared.

    Returns:
        Largest absolute difference of a log-probability, in nats, or of a reward model's score.

    Raises:
        InputError: The difference is larger than rounding in the model's dtype can cause.
    """
    groups = [[0, 5], [2, 4], [4, 3, 5]] if packing else [[0, 8]]
    config, was_training = base_model(model).config.get_text_config(), model.training
    device = next(model.parameters()).device
    tokens = torch.arange(7, 7 + 13 * sum(map(sum, groups)), 13, device=device)[None] % config.vocab_size
    tokens[tokens == config.pad_token_id] += 1  # Transformers would take the token before it as the last one
    score, plain = VIEWS[head_of(model)]
    model.eval()
    try:
        probe = _probe(tokens, groups, packing)
        with uncompiled(model):
            ours = score(model, probe)
            theirs = torch.cat([plain(model, path, skip) for path, skip in _paths(tokens[0], groups)])
        difference = (ours - theirs).abs().max().item()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit(model, packing, f"it does not run there ({error})") from error
    finally:
        model.train(was_training)
    windows = probe.inputs["layout"].windows if packing else set()
    if packing and any(getattr(config, key, None) for key in WINDOWS) and not any(windows):
        # The test batch is shorter than any window, so the comparison cannot show that the window is missing.
        raise _unfit(model, packing, "it limits its attention by a mask alone, which the flat layout replaces")
    if not difference <= _tolerance(model):
        raise _unfit(model, packing, f"its scores differ by {difference:.3g} from those of its own forward")
    return difference


def _unfit(model: nn.Module, packing: bool, reason: str) -> InputError:
    return InputError(
        f"{type(base_model(model)).__name__} with data.packing={str(packing).lower()}",
        f"{reason}; the flat layout needs a decoder that mixes tokens by attention alone"
        if packing
        else f"{reason}; its logits are scaled in an unknown way",
        "Type data.packing=false" if packing else "Use another architecture",
    )


def _tolerance(model: nn.Module) -> float:
    """Largest difference, in nats, that another order of summation can cause."""
    config = base_model(model).config
    low_precision = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return 0.5 if low_precision or getattr(config, "quantization_config", None) else 2e-3


def _probe(tokens: Tensor, groups: list[list[int]], packing: bool) -> MicroBatch:
    device, source_positions, label_positions, last_positions = tokens.device, [], [], []
    for path in find_paths(groups):
        labels = range(path.start, path.start + path.length)
        sources = [path.source, *labels[:-1]]
        predicted = [(source, label) for source, label in zip(sources, labels, strict=True) if source is not None]
        source_positions += [source for source, _ in predicted]
        label_positions += [label for _, label in predicted]
        last_positions.append(labels[-1])
    layout = {"layout": packed_layout(groups).to(device)} if packing else {"attention_mask": torch.ones_like(tokens)}
    inputs = {"input_ids": tokens, "position_ids": positions(groups).to(device)[None], **layout}
    labels, nothing = torch.tensor(label_positions, device=device), torch.zeros(0, dtype=torch.long, device=device)
    return MicroBatch(
        inputs=inputs,
        source_positions=torch.tensor(source_positions, device=device),
        labels=tokens[0][labels],
        sequence_ids=torch.zeros_like(labels),
        group_ids=nothing,
        columns={},
        num_tokens=tokens.numel(),
        last_positions=torch.tensor(last_positions, device=device),
    )


def _paths(tokens: Tensor, groups: list[list[int]]):
    """Each prompt + completion as a separate sequence, with the number of its tokens that are not supervised."""
    for path in find_paths(groups):
        ranges = (*path.context, (path.start, path.start + path.length))
        yield torch.cat([tokens[start:end] for start, end in ranges]), max(path.before, 1)


def _plain_logps(model: nn.Module, path: Tensor, skip: int) -> Tensor:
    logps = model(input_ids=path[None], use_cache=False).logits[0].float().log_softmax(-1)
    return logps[:-1].gather(-1, path[1:, None])[skip - 1 :, 0]


def _logps(model: nn.Module, batch: MicroBatch) -> Tensor:
    return token_scores(model, batch).logps


def _plain_score(model: nn.Module, path: Tensor, _: int) -> Tensor:
    return model(input_ids=path[None], use_cache=False).logits[:, 0].float()


VIEWS = {"language_model": (_logps, _plain_logps), "reward": (sequence_scores, _plain_score)}
"""For each head, the function of this module on a batch, and the model's own forward on one sequence of it."""
