"""Write a trained model anew for other tools: merged with its base, in another precision, in smaller files."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import create_repo, upload_folder
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx  # the HTTP library differs between releases
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from alignlab.errors import InputError
from alignlab.models import adapters
from alignlab.models.export import (
    ExportError,
    cast,
    check_difference,
    hidden_stages,
    logits,
    rounding_limit,
    save,
    verify,
)
from alignlab.models.heads import Head, adapter_head, head_of, set_pad_token
from alignlab.models.load import open_weights, refuse_damaged
from alignlab.models.locations import Location, locate
from alignlab.system.disk import MANIFEST, write_manifest
from alignlab.types.adapted import base_model, is_adapted
from alignlab.types.dtypes import Dtype

if TYPE_CHECKING:
    from peft import PeftModel

NUM_EXAMPLE_TOKENS = 32

CARD = "README.md"
LOG_IN = "Check the name, log in with `hf auth login`, and upload it with `hf upload`"
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Published:
    """What was written.

    Args:
        folder: A Hugging Face folder, or that of a PEFT adapter.
        dtype: Dtype of the weights.
        num_bytes: Size of all files.
        max_logit_difference: Largest difference of a logit between the trained model in float32 and the written
            weights, computed in float32, on an example.
    """

    folder: Path
    dtype: str
    num_bytes: int
    max_logit_difference: float


def publish(
    path: str,
    to: Path,
    *,
    merge: bool,
    dtype: Dtype,
    max_shard_size: str,
    max_logit_difference: float | None,
    trust_remote_code: bool,
) -> Published:
    """Write a model with its tokenizer, template, generation config and card.

    An adapter is merged in float32 and rounded once, to the precision of the base's files or to ``dtype``; never into
    quantised weights.

    Args:
        path: As in ``locations.locate``.
        to: Folder to write; it must be empty or not exist. Nothing is written if the check fails.
        merge: Merge an adapter into its base; otherwise the adapter is written alone.
        dtype: Dtype of the written weights; ``auto`` is that of the files (with ``merge`` those of the base).
        max_shard_size: Largest file of full weights, such as ``5GB``.
        max_logit_difference: Largest allowed difference of a logit; ``None`` for what rounding can cause.
        trust_remote_code: Run the code that comes with the weights.

    Raises:
        InputError: There is no model; an adapter cannot be merged (prefix, adaption prompt, a base that exists only
            quantised); or ``to`` is not empty.
        ExportError: The written weights give other logits.
    """
    refuse_used(to)
    location = locate(path)
    if location.adapter and not merge:
        return _copy_adapter(location, to, dtype)
    model, of_files = _open(location, trust_remote_code)
    target = of_files if dtype == "auto" else getattr(torch, dtype)
    ids = torch.linspace(0, base_model(model).config.get_text_config().vocab_size - 1, NUM_EXAMPLE_TOKENS).long()[None]
    before = logits(model, {"input_ids": ids})
    whole = cast(model.merge_and_unload(safe_merge=True) if is_adapted(model) else model, target)
    # In float32 again, so that only the rounding of the weights is compared, not that of the activations.
    after = logits(cast(whole, torch.float32), {"input_ids": ids})
    limit = rounding_limit(target, before) if max_logit_difference is None else max_logit_difference
    difference = check_difference("the written weights", after, before, limit)
    whole = cast(whole, target)
    tokenizer = AutoTokenizer.from_pretrained(location.tokenizer, trust_remote_code=trust_remote_code)
    _complete(whole, tokenizer, location)
    save(whole, tokenizer, to, max_shard_size=max_shard_size)
    try:
        verify(to, whole, {"input_ids": ids})
    except ExportError:
        shutil.rmtree(to)  # it was new or empty
        raise
    _copy_card(location, to)
    return Published(to, _name(target), _size(to), difference)


def refuse_used(to: Path) -> None:
    """Refuse a folder that holds something, and one beside which a name is taken that ``save`` writes and removes.

    Args:
        to: Folder to write.

    Raises:
        InputError: It is not new or empty, or such a name is taken.
    """
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise InputError(f"to={to}", "it exists and is not empty", "Name a new folder")
    for taken in (path for path in hidden_stages(to) if path.exists()):
        why = f"{taken} is in the way, perhaps left by an export that was killed"
        raise InputError(f"to={to}", why, "Remove or rename it, or name another folder")


def _open(location: Location, trust_remote_code: bool) -> "tuple[PreTrainedModel | PeftModel, torch.dtype]":
    """The model in float32, with its adapter, and the precision of the (base) files."""
    from peft.tuners.tuners_utils import BaseTuner

    asked = f"from={location.asked}"
    base = open_weights(location, "auto", "eager", head=stored_head(location), trust_remote_code=trust_remote_code)
    if getattr(base.config, "quantization_config", None):
        instead = "Name the unquantised base in it, or type merge=false" if location.adapter else "Name other weights"
        raise InputError(asked, f"{location.weights} exists only quantised", instead)
    dtype, model = base.dtype, cast(base, torch.float32)
    if location.adapter is None:
        return model, dtype
    model = adapters.reattach(model, location.adapter)
    if not isinstance(model.base_model, BaseTuner):
        kind = model.active_peft_config.peft_type.value.lower()
        raise InputError(asked, f"an adapter of kind {kind} does not change weights", "Type merge=false")
    return model, dtype


def stored_head(location: Location) -> Head:
    """The head of the weights at a location.

    Args:
        location: As ``locations.locate`` returns it.
    """
    if location.adapter:
        return adapter_head(location.adapter)
    names = AutoConfig.from_pretrained(location.weights, revision=location.revision).architectures or ()
    return "reward" if any("SequenceClassification" in name for name in names) else "language_model"


def _complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, location: Location) -> None:
    """Take the stop tokens that an adapter was trained with, and a reward model's pad token."""
    if head_of(model) == "reward":
        set_pad_token(model, tokenizer, ())
    elif location.adapter and (Path(location.adapter) / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(location.adapter)


def _copy_adapter(location: Location, to: Path, dtype: Dtype) -> Published:
    """Copy an adapter with all files beside it, its tensors perhaps in another precision."""
    refuse_damaged(location)
    if not (Path(location.adapter) / ADAPTER_FILE).is_file():
        why = f"there is no {ADAPTER_FILE} in {location.adapter}"
        raise InputError(f"from={location.asked}", why, "Save it anew with PEFT, which writes safetensors")
    shutil.copytree(location.adapter, to, ignore=shutil.ignore_patterns(MANIFEST, CARD), dirs_exist_ok=True)
    tensors = load_file(to / ADAPTER_FILE)
    if dtype != "auto":
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
        save_file(tensors, to / ADAPTER_FILE, metadata={"format": "pt"})
    write_manifest(to)
    _copy_card(location, to)
    return Published(to, _name(next(iter(tensors.values())).dtype), _size(to), 0.0)


def _copy_card(location: Location, to: Path) -> None:
    card = Path(location.adapter or location.weights) / CARD
    if card.is_file():
        shutil.copyfile(card, to / CARD)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def push(folder: Path, repository: str) -> str:
    """Upload a folder to a repository on the hub, which is made, private, if there is none.

    Args:
        folder: What to upload.
        repository: Its name, such as ``me/my-model``.

    Returns:
        The address of the upload.

    Raises:
        InputError: The hub cannot be reached, or refuses.
    """
    try:
        create_repo(repository, private=True, exist_ok=True)
        return str(upload_folder(repo_id=repository, folder_path=str(folder), commit_message="alignlab export"))
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(f"push_to={repository}", f"{folder} is written, but not uploaded: {why}", LOG_IN) from error
