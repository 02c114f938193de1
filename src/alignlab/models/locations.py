"""Find weights: embedded, in a model, adapter or run folder, or on a hub."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx  # the HTTP library differs between releases

from alignlab.errors import InputError
from alignlab.models.opening import opening
from alignlab.models.pickled import refuse_programs
from alignlab.run_folder.storage import MODEL, STATE
from alignlab.system.paths import typed_path

POCKET = Path(str(files("alignlab"))) / "assets" / "pocket"
QUANTIZATION = "quantization_config.json"
"""File of an adapter's folder with the quantisation of its base, which PEFT does not record."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class Location(NamedTuple):
    """What a ``model.path`` refers to.

    Args:
        asked: The path as the user typed it.
        weights: Folder or hub id of the full weights.
        tokenizer: Folder or hub id of the tokenizer.
        revision: Revision of the weights on the hub.
        adapter: Folder of the adapter to put on the weights, if any.
        quantization: How the weights were quantised when the adapter was trained on them; empty if they were not.
    """

    asked: str
    weights: str
    tokenizer: str
    revision: str | None
    adapter: str | None
    quantization: Mapping[str, Any] = {}


def locate(path: str, revision: str | None = None) -> Location:
    """Find the weights of a path: local folders first, then the hub, with a single request and without retries.

    Args:
        path: ``pocket``, a model, adapter or run folder, or a hub id.
        revision: Branch, tag or commit on the hub.

    Raises:
        InputError: There is no model or adapter; names the places searched.
    """
    folder = POCKET if path == "pocket" else typed_path(path, "model.path")
    if (folder / STATE).exists() and not (folder / MODEL).exists():
        why = "it is a checkpoint, which holds the state of training and no model"
        instead = "Type checkpoint.also_model=true in the run that writes it, or resume= to continue from it"
        raise InputError(f"model.path={path}", why, instead)
    for candidate in (folder, folder / "model"):  # a run keeps its result in model/
        if (candidate / "adapter_config.json").is_file():
            return _locate_adapter(path, candidate.resolve())
        if (candidate / "config.json").is_file():
            refuse_programs(candidate, f"model.path={path}")
            found = str(candidate.resolve())
            return Location(path, found, found, None, None)
    looked = f"no config.json and no adapter_config.json in {folder.resolve()} or its folder model"
    if folder.exists() or path == "pocket" or not HUB_ID.fullmatch(path):
        raise InputError(f"model.path={path}", looked, "Name a folder that holds a model, or a hub id")
    _ask_hub(path, revision, looked)
    return Location(path, path, path, revision, None)


def _locate_adapter(asked: str, folder: Path) -> Location:
    file = folder / "adapter_config.json"
    with opening(f"model.path={asked}", f"{file} cannot be read", "Name another folder, or save the adapter again"):
        recorded = json.loads(file.read_text(encoding="utf-8"))
        base, revision = (recorded.get(key) or "" for key in ("base_model_name_or_path", "revision"))
        base, revision = Path(base) and base, str(revision) or None  # a path is a text
    # The folder of the embedded model differs between machines.
    if not Path(base).exists() and Path(base).parts[-2:] == POCKET.parts[-2:]:
        base = "pocket"
    try:
        below = _full_weights(base, revision, folder)
    except InputError as error:
        raise InputError(
            f"model.path={asked}",
            f"the adapter needs the weights that it was trained on, {base or 'which it does not name'}: {error.why}",
            f"Write their path as base_model_name_or_path into {file}",
        ) from error
    refuse_programs(folder, f"model.path={asked}")
    tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else below.tokenizer
    return Location(asked, below.weights, tokenizer, below.revision, str(folder), _quantization(asked, folder))


def _quantization(asked: str, folder: Path) -> Mapping[str, Any]:
    file = folder / QUANTIZATION
    if not file.is_file():
        return {}
    with opening(f"model.path={asked}", f"{file} cannot be read", "Name another folder, or save the adapter again"):
        return dict(json.loads(file.read_text(encoding="utf-8")).items())


def _full_weights(path: str, revision: str | None, adapter: Path) -> Location:
    """Find the base weights of an adapter.

    Raises:
        InputError: There are none, or there is another adapter, or the adapter itself.
    """
    folder = typed_path(path, "model.path")
    if any((candidate / "adapter_config.json").is_file() for candidate in (folder, folder / "model") if path):
        why = f"{folder} holds an adapter, and an adapter on another adapter is not supported"
        raise InputError(f"model.path={adapter}", why, "Merge that one into its own base first")
    return locate(path, revision)


def _ask_hub(path: str, revision: str | None, looked: str) -> None:
    """Send a single request: without a network, ``from_pretrained`` would retry for half a minute per file."""
    if isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        return
    try:
        HfApi().model_info(path, revision=revision, timeout=10)
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise InputError(
            f"model.path={path}",
            f"{looked}; not in the hub cache {HF_HUB_CACHE}; from the hub: {str(error).strip().splitlines()[0]}",
            "Name a folder that holds a model, or model=pocket for the embedded one",
        ) from error
