"""Export to a Hugging Face model folder or a PEFT adapter folder, checked after writing.

1. A folder is written completely or not at all.
2. The written folder is opened again and compared with the live model: tensor by tensor, and by its logits or scores.

The reopened weights take no memory of the process: in the dtype of the files they are mapped from disk. They go to the
live model's device if it has room for them, and else block by block (``offload``).
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from alignlab.errors import InputError
from alignlab.models import adapters
from alignlab.models.blockwise import place
from alignlab.models.compiled import uncompiled
from alignlab.models.dropout import rates_of_files
from alignlab.models.heads import head_of
from alignlab.models.load import open_weights
from alignlab.models.locations import QUANTIZATION, locate
from alignlab.system.disk import read_manifest, write_manifest, write_text
from alignlab.types.adapted import base_model, is_adapted

if TYPE_CHECKING:
    from peft import PeftModel

# Largest difference of a logit that rounding can cause, as a share of the largest logit.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class ExportError(RuntimeError):
    """The files on disk differ from the trained model."""


def save(
    model: "PreTrainedModel | PeftModel",
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state_dict: Mapping[str, Tensor] | None = None,
    max_shard_size: str | None = None,
) -> None:
    """Write the weights, the tokenizer with its template, and the generation config.

    A model with an adapter is saved as the adapter alone, without its base.

    Args:
        model: The live model.
        tokenizer: Its tokenizer.
        folder: Replaced as a whole if it exists.
        state_dict: Full tensors by name, needed if the model holds only shards of them.
        max_shard_size: Largest file of full weights, such as ``5GB``; ``None`` for that of Transformers.
    """
    folder = Path(folder).absolute()
    partial, _ = hidden_stages(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    base, extra = base_model(model), {}
    if is_adapted(model):  # the embedding is never resized, and PEFT would query the hub to find out
        extra = {"save_embedding_layers": False, "selected_adapters": [model.active_adapter]}
        if quantization := getattr(base.config, "quantization_config", None):
            (partial / QUANTIZATION).write_text(json.dumps(quantization.to_dict(), indent=2, default=str))
    elif max_shard_size is not None:
        extra = {"max_shard_size": max_shard_size}
    # A copy, since Transformers 5.17 removes the further names of shared weights from it.
    with rates_of_files(base), _blank_generation(base):
        model.save_pretrained(str(partial), state_dict=state_dict and dict(state_dict), **extra)
    if not is_adapted(model):
        _record_dtype(partial / CONFIG_NAME, written_dtype(model, state_dict))
    tokenizer.save_pretrained(str(partial))
    if base.can_generate():
        write_generation(base.generation_config, partial)
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's, which says nothing of this model
    for file in partial.iterdir():
        file.chmod(partial.stat().st_mode & 0o666)  # safetensors writes files that only their owner can read
    write_manifest(partial)
    _replace(folder, partial)


def hidden_stages(folder: Path) -> tuple[Path, Path]:
    """Folders beside a folder: where it is written, and where what it replaces goes before it is removed.

    Args:
        folder: As for ``save``.
    """
    return folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")


def install(written: Path, folder: Path) -> None:
    """Copy a folder that ``save`` has written.

    Args:
        written: The folder.
        folder: Replaced as a whole if it exists.

    Raises:
        ExportError: The copy differs from the folder's manifest.
    """
    partial, _ = hidden_stages(folder)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(written, partial)
    try:
        read_manifest(partial)
    except ValueError as error:
        raise ExportError(f"{written} is damaged: {error}") from error
    _replace(folder, partial)


def _replace(folder: Path, partial: Path) -> None:
    """Put a complete folder in the place of another, which may not exist."""
    _, old = hidden_stages(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def written_dtype(model: "PreTrainedModel | PeftModel", state_dict: Mapping[str, Tensor] | None) -> torch.dtype:
    """Dtype of the full weights as they are written; of an adapter, that of its base.

    Args:
        model: The live model.
        state_dict: The weights that are written if they are not the live ones.
    """
    dtype = base_model(model).dtype
    if state_dict is None or is_adapted(model):
        return dtype
    trained = (name for name, tensor in model.named_parameters() if tensor.requires_grad and tensor.dtype == dtype)
    return state_dict[next(trained)].dtype


def _record_dtype(config: Path, dtype: torch.dtype) -> None:
    """Write the dtype into a saved config; Transformers has written that of the live model."""
    keys = json.loads(config.read_text(encoding="utf-8"))
    keys["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _blank_generation(model: PreTrainedModel) -> Iterator[None]:
    """Give a model an empty generation config within the context, since Transformers refuses to save some."""
    if not model.can_generate():
        yield
        return
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def write_generation(generation: GenerationConfig, folder: Path) -> None:
    """Write ``generation_config.json`` with the values as they are.

    Transformers refuses to save values that have no effect together (``do_sample: false`` with a temperature), which
    published models have, unless nothing at all was changed; here the stop tokens are.

    Args:
        generation: Of the model.
        folder: Exists.
    """
    generation.to_json_file(folder / GENERATION_CONFIG_NAME, use_diff=True, keys_to_pop=["compile_config"])


def verify_files(model: "PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write everything but the weights, and open it again: for a model that is too large to be saved as a trial.

    Args:
        model: The live model, also a sharded one.
        tokenizer: Its tokenizer.
        folder: Exists, and is empty.
    """
    base = base_model(model)
    base.config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    if base.can_generate():
        write_generation(base.generation_config, folder)
        GenerationConfig.from_pretrained(str(folder))
    remote = type(base).__module__.startswith("transformers_modules")
    if not remote:  # its code is copied with the weights
        AutoConfig.from_pretrained(str(folder))
        AutoTokenizer.from_pretrained(str(folder))
    if is_adapted(model):
        model.active_peft_config.save_pretrained(str(folder))


def verify(
    folder: Path,
    model: "PreTrainedModel | PeftModel",
    example_inputs: Mapping[str, Any] | None,
    state_dict: Mapping[str, Tensor] | None = None,
    expected: Tensor | None = None,
    computed_in: torch.dtype | None = None,
) -> float:
    """Open a saved folder again and compare it with the live model.

    Args:
        folder: Written by ``save``.
        model: The live model; its base is read again in the same precision and quantisation.
        example_inputs: Keyword arguments of the forward, tensors ``[B, T]``; ``None`` skips the comparison of logits.
        state_dict: The one given to ``save``.
        expected: Logits or scores of the live model, needed if one rank cannot compute them alone. Shape ``[B, T, V]``
            or ``[B, 1]``.
        computed_in: Dtype in which ``expected`` was computed; ``None`` for that of the weights.

    Returns:
        Largest difference of a logit.

    Raises:
        ExportError: Tensors are missing, superfluous, empty or different, or the logits differ beyond rounding.
    """
    reopened = _reopened(folder, model, written_dtype(model, state_dict))
    stored = _stored_tensors(folder, reopened)
    if is_adapted(model):
        from peft import get_peft_model_state_dict

        live = get_peft_model_state_dict(model, state_dict, save_embedding_layers=False)
    else:
        live = state_dict or model.state_dict()
    faults = compare(stored, live)
    if faults:
        raise ExportError(f"{folder} differs from the trained model: {'; '.join(faults[:4])}")
    if example_inputs is None:
        return 0.0
    expected = logits(model, example_inputs) if expected is None else expected
    return _same_logits(folder, reopened, model, example_inputs, expected, computed_in)


def verify_logits(
    folder: Path,
    model: "PreTrainedModel | PeftModel",
    example_inputs: Mapping[str, Any],
    expected: Tensor,
    computed_in: torch.dtype | None,
    dtype: torch.dtype | None,
) -> float:
    """Open a saved folder again and compare its logits with those of its weights when they were saved.

    Args:
        folder: Written by ``save``.
        model: A live model of the same kind, whose weights may have changed since.
        example_inputs: Keyword arguments of the forward, tensors ``[B, T]``.
        expected: The logits or scores. Shape ``[B, T, V]`` or ``[B, 1]``.
        computed_in: Dtype in which ``expected`` was computed; ``None`` for that of the weights.
        dtype: Dtype in which the folder is opened; ``None`` for that of the live weights.

    Returns:
        Largest difference of a logit.

    Raises:
        ExportError: The folder cannot be opened, or the logits differ beyond rounding.
    """
    reopened = _reopened(folder, model, dtype or base_model(model).dtype)
    return _same_logits(folder, reopened, model, example_inputs, expected, computed_in)


def _same_logits(
    folder: Path,
    reopened: nn.Module,
    model: nn.Module,
    inputs: Mapping[str, Any],
    expected: Tensor,
    computed_in: torch.dtype | None,
) -> float:
    narrowest = max(computed_in or base_model(model).dtype, base_model(reopened).dtype, key=TOLERANCE.__getitem__)
    limit, device = rounding_limit(narrowest, expected), base_model(model).device
    if not getattr(base_model(model).config, "quantization_config", None):  # quantised weights are there already
        place(reopened, device)
    return check_difference(f"{folder} opened again", logits(reopened, inputs, device), expected, limit)


def _reopened(folder: Path, like: nn.Module, dtype: torch.dtype) -> nn.Module:
    try:
        return reopen(folder, like, dtype)
    except (InputError, OSError, SafetensorError) as error:
        raise ExportError(f"{folder} cannot be opened again: {error}") from error


def reopen(folder: Path, like: "PreTrainedModel | PeftModel", dtype: torch.dtype) -> "PreTrainedModel | PeftModel":
    """Read a saved folder in a precision, with the quantisation and attention of a live model."""
    live, location = base_model(like), locate(str(folder))
    remote = type(live).__module__.startswith("transformers_modules")
    quantization = getattr(live.config, "quantization_config", None)
    attention = live.config._attn_implementation
    options = {"trust_remote_code": remote, "quantization": quantization, "head": head_of(live)}
    model = open_weights(location, dtype, attention, **options)
    if location.adapter:
        # The base's config may lack it, and that of a model that reads images too has none.
        model.config.pad_token_id = getattr(live.config, "pad_token_id", None)
        model = adapters.reattach(model, location.adapter)
    return model


def _stored_tensors(folder: Path, reopened: nn.Module) -> Mapping[str, Tensor]:
    """Tensors in an adapter's file, or those of reopened full weights, which may be renamed and split on disk."""
    if is_adapted(reopened):
        return load_file(Path(folder) / "adapter_model.safetensors")
    return reopened.state_dict()


def compare(stored: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> list[str]:
    """Describe the differences between two sets of tensors by name: shapes, dtypes, values; or that both are empty.

    Args:
        stored: Tensors read from disk. Any shape.
        live: Tensors of the live model. Any shape.

    Returns:
        One text per difference.
    """
    faults = [f"{name} is missing" for name in sorted(live.keys() - stored.keys())]
    faults += [f"{name} is superfluous" for name in sorted(stored.keys() - live.keys())]
    faults += [] if live else ["it holds no tensors"]
    for name in sorted(live.keys() & stored.keys()):
        ours, theirs = live[name].detach().cpu(), stored[name].cpu()
        if theirs.numel() == 0 or ours.shape != theirs.shape:
            faults.append(f"{name} has shape {list(theirs.shape)}, live {list(ours.shape)}")
        elif ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            faults.append(f"{name} has other values")
    return faults


@torch.no_grad()
def logits(model: nn.Module, inputs: Mapping[str, Any], device: torch.device | None = None) -> Tensor:
    """Compute logits or scores in eval mode, and restore the mode.

    Args:
        model: A language model or a reward model.
        inputs: Keyword arguments of the forward; tensors have shape ``[B, T]``.
        device: Where it computes; ``None`` for where its weights are.

    Returns:
        Logits ``[B, T, V]`` or scores ``[B, 1]``, float32, on the CPU.
    """
    was_training, device = model.training, device or next(model.parameters()).device
    model.eval()
    try:
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        with uncompiled(model):
            return model(**moved).logits.float().cpu()
    finally:
        model.train(was_training)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Change the dtype of the weights in place; buffers (rotary frequencies) keep theirs."""
    for tensor in model.parameters():
        tensor.data = tensor.data.to(dtype)
    return model


def rounding_limit(dtype: torch.dtype, expected: Tensor) -> float:
    """Largest difference of logits that rounding can cause; a single score may be near zero although its terms are not.

    Args:
        dtype: Dtype of the weights, or of the computation.
        expected: Logits ``[B, T, V]`` or scores ``[B, 1]``.
    """
    largest = expected.abs().max().item()
    return TOLERANCE[dtype] * (max(largest, 1.0) if expected.shape[-1] == 1 else largest)


def check_difference(what: str, ours: Tensor, theirs: Tensor, limit: float) -> float:
    """Largest difference of two sets of logits of the same shape.

    Args:
        what: Whose logits, for the error.
        ours: Logits ``[B, T, V]`` or scores ``[B, 1]``.
        theirs: Others of the same shape.
        limit: Largest difference allowed.

    Raises:
        ExportError: It is larger, or not a number.
    """
    difference = (ours - theirs).abs().max().item()
    if not difference <= limit:  # also for NaN
        raise ExportError(f"{what}: a logit differs by {difference:.3g}, more than {limit:.3g}")
    return difference


def write_card(folder: Path, text: str) -> None:
    """Write the model card, which is not in the manifest, since one may edit it.

    Args:
        folder: Written by ``save``.
        text: In Markdown, with the header of Hugging Face.
    """
    write_text(folder / "README.md", text)
