"""Where weights lie: embedded, in a model, adapter or run folder, or on a hub."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx  # which transport library it is differs between releases

from alignlab.errors import InputError
from alignlab.models.opening import opening
from alignlab.models.pickled import refuse_programs
from alignlab.system.paths import typed_path

POCKET = Path(str(files("alignlab"))) / "assets" / "pocket"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class Place(NamedTuple):
    """What stands behind a ``model.path``.

    Args:
        asked: As the user typed it.
        weights: Folder or hub id of the full weights.
        tokenizer: Folder or hub id of the tokenizer.
        revision: Revision of the weights on the hub.
        adapter: Adapter folder that belongs on top of the weights.
    """

    asked: str
    weights: str
    tokenizer: str
    revision: str | None
    adapter: str | None


def locate(path: str, revision: str | None = None) -> Place:
    """Find out what a path holds: local folders first, then the hub, which is asked once and without retries.

    Args:
        path: ``pocket``, a model, adapter or run folder, or a hub id.
        revision: Branch, tag or commit on the hub.

    Raises:
        InputError: Nothing is there, and where it was looked for.
    """
    folder = POCKET if path == "pocket" else typed_path(path, "model.path")
    for candidate in (folder, folder / "model"):  # a run keeps its result in model/
        if (candidate / "adapter_config.json").is_file():
            return _locate_adapter(path, candidate.resolve())
        if (candidate / "config.json").is_file():
            refuse_programs(candidate, f"model.path={path}")
            found = str(candidate.resolve())
            return Place(path, found, found, None, None)
    looked = f"no config.json and no adapter_config.json in {folder.resolve()} or its folder model"
    if folder.exists() or path == "pocket" or not HUB_ID.fullmatch(path):
        raise InputError(f"model.path={path}", looked, "Name a folder that holds a model, or a hub id")
    _ask_hub(path, revision, looked)
    return Place(path, path, path, revision, None)


def _locate_adapter(asked: str, folder: Path) -> Place:
    file = folder / "adapter_config.json"
    with opening(f"model.path={asked}", f"{file} cannot be read", "Name another folder, or save the adapter again"):
        recorded = json.loads(file.read_text(encoding="utf-8"))
        base, revision = (recorded.get(key) or "" for key in ("base_model_name_or_path", "revision"))
        base, revision = Path(base) and base, str(revision) or None  # a path is a text
    # The embedded model lies elsewhere on every machine.
    if not Path(base).exists() and Path(base).parts[-2:] == POCKET.parts[-2:]:
        base = "pocket"
    try:
        below = _full_weights(base, revision, folder)
    except InputError as error:
        raise InputError(
            f"model.path={asked}",
            f"the adapter needs the weights that it was trained on, {base or 'which it does not name'}: {error.why}",
            f"Write where they lie as base_model_name_or_path into {file}",
        ) from error
    refuse_programs(folder, f"model.path={asked}")
    tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else below.tokenizer
    return Place(asked, below.weights, tokenizer, below.revision, str(folder))


def _full_weights(path: str, revision: str | None, adapter: Path) -> Place:
    """Where the weights under an adapter lie.

    Raises:
        InputError: Nothing is there, or another adapter, or the adapter itself.
    """
    folder = typed_path(path, "model.path")
    if any((candidate / "adapter_config.json").is_file() for candidate in (folder, folder / "model") if path):
        why = f"{folder} holds an adapter, and one on top of another is not supported"
        raise InputError(f"model.path={adapter}", why, "Merge that one into its own base first")
    return locate(path, revision)


def _ask_hub(path: str, revision: str | None, looked: str) -> None:
    """One question: ``from_pretrained`` by itself would retry for half a minute per file without a network."""
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
