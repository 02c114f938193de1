"""LLaMA-Factory's ``dataset_info.json``: read an entry into the formats and column names of this package.

Where we differ from LLaMA-Factory: ``num_samples`` takes the first rows and not a random choice; an alpaca entry whose
columns name a prompt and no response is a text set; multimodal columns are refused where they are filled; sets on other
hubs than Hugging Face's, loading scripts and cloud files are refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignlab.data.formats.fields import type_name
from alignlab.data.formats.prompts import DIALOGUES, QUESTIONS
from alignlab.data.sources.files import Record
from alignlab.errors import InputError, nearest, raise_all
from alignlab.system.paths import reason, typed_path

ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
SHARED = {
    "system": "system",
    "tools": "tools",
    "images": "images",
    "videos": "videos",
    "audios": "audios",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "label",
}
# LLaMA-Factory's name of a column → our canonical name, by formatting.
COLUMNS = {"alpaca": ALPACA | SHARED, "sharegpt": {"messages": "messages"} | SHARED}
COLUMNS["openai"] = COLUMNS["sharegpt"]
ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
TAGS = ("role_tag", "content_tag", *ROLE_TAGS)
DEFAULT_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "messages"},
}
LOCATIONS = ("file_name", "hf_hub_url")
TYPES = dict.fromkeys((*LOCATIONS, "formatting", "subset", "split", "folder", "stage"), str)
TYPES |= {"ranking": bool, "columns": dict, "tags": dict, "num_samples": int}
ELSEWHERE = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
# Columns that a format reads by default. In a registry they are read only if the entry names them.
ONLY_WHERE_NAMED = {*DIALOGUES, *QUESTIONS, "system", "tools", "history", "scores"}


class Entry(NamedTuple):
    """One data set of a registry.

    Args:
        path: File or folder on disk; None where the set is on the hub.
        hub: Name on the Hugging Face hub; None where the set is on disk.
        format: Name of our format.
        columns: Canonical column name → name of that column in the set.
        declared: Whether the entry names its columns; otherwise they are LLaMA-Factory's defaults and may be absent.
        tags: The entry's ``tags``: names of the role and content keys, and of the roles.
        subset: Configuration on the hub.
        split: Split on the hub.
        folder: Folder within the set on the hub.
        num_samples: Number of first rows to take; None for all.
    """

    path: Path | None
    hub: str | None
    format: str
    columns: dict[str, str]
    declared: bool
    tags: dict[str, str]
    subset: str | None
    split: str
    folder: str | None
    num_samples: int | None


def read_entry(dataset_info: str, name: str) -> Entry:
    """Read one entry of a registry.

    Args:
        dataset_info: Path of ``dataset_info.json``, or of its folder.
        name: Name of the data set in the registry.

    Raises:
        InputError: There is no such file or entry, or the entry has unknown keys or values.
    """
    path, registry = _registry(dataset_info)
    if name not in registry:
        raise InputError(f"data.name={name}", f"{path.name} has no such data set", nearest(name, registry))
    asked = f"{path.name}: {name}"
    if not isinstance(registry[name], dict):
        raise InputError(asked, f"it is {type_name(registry[name])} where an object is needed", "Correct the entry")
    raw = {key: value for key, value in registry[name].items() if value is not None}
    raise_all(_wrong_types(asked, raw))
    formatting = raw.get("formatting", "alpaca")
    raise_all(_faults(asked, raw, formatting))
    theirs = raw.get("columns", DEFAULT_COLUMNS[formatting])
    format = _format(formatting, theirs, raw)
    ours = COLUMNS[formatting] | ({"prompt": "text"} if format == "text" else {})
    return Entry(
        path=None if "hf_hub_url" in raw else typed_path(path.parent / raw["file_name"], f"{asked}.file_name"),
        hub=raw.get("hf_hub_url"),
        format=format,
        columns={ours[key]: column for key, column in theirs.items() if column},
        declared="columns" in raw,
        tags={key: tag for key, tag in raw.get("tags", {}).items() if tag is not None},
        subset=raw.get("subset"),
        split=raw.get("split", "train"),
        folder=raw.get("folder"),
        num_samples=raw.get("num_samples"),
    )


def _registry(dataset_info: str) -> tuple[Path, dict[str, Any]]:
    path = typed_path(dataset_info, "data.dataset_info")
    path = path / "dataset_info.json" if path.is_dir() else path
    asked, instead = f"data.dataset_info={dataset_info}", "Point it at a dataset_info.json"
    try:
        registry = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(asked, f"it cannot be read ({reason(error)})", instead) from error
    if not isinstance(registry, dict):
        raise InputError(asked, f"it holds {type_name(registry)} where an object of data sets is needed", instead)
    return path, registry


def _wrong_types(asked: str, raw: Mapping[str, Any]) -> list[InputError]:
    """Find values of another type than LLaMA-Factory documents; ``_faults`` finds unknown keys."""
    given = {key: raw[key] for key in TYPES if key in raw}
    for part in ("columns", "tags"):
        inside = raw[part].items() if isinstance(raw.get(part), dict) else ()
        given |= {f"{part}.{key}": value for key, value in inside if value is not None}
    wrong = {key: value for key, value in given.items() if type(value) is not TYPES.get(key, str)}
    faults = [
        InputError(f"{asked}.{key}", f"it is {type_name(value)}", f"Write {type_name(TYPES.get(key, str)())}")
        for key, value in wrong.items()
    ]
    if "num_samples" not in wrong and raw.get("num_samples", 1) < 1:
        faults.append(InputError(f"{asked}.num_samples={raw['num_samples']}", "it takes no row", "Write 1 or more"))
    return faults


def _format(formatting: str, columns: Mapping[str, str], raw: Mapping[str, Any]) -> str:
    if raw.get("ranking"):
        return "preference"
    if columns.get("kto_tag"):
        return "unpaired"
    if formatting != "alpaca":
        return "messages"
    return "alpaca" if columns.get("response") else "text"


def _faults(asked: str, raw: Mapping[str, Any], formatting: str) -> list[InputError]:
    if formatting not in COLUMNS:
        return [
            InputError(f"{asked}.formatting={formatting}", "there is no such formatting", nearest(formatting, COLUMNS))
        ]
    known = {"": tuple(TYPES), "columns": tuple(COLUMNS[formatting]), "tags": TAGS}
    given = {
        "": [key for key in raw if key not in ELSEWHERE],
        "columns": raw.get("columns", {}),
        "tags": raw.get("tags", {}),
    }
    faults = [
        InputError(f"{asked}{f'.{part}' if part else ''}.{key}", "there is no such key", nearest(key, known[part]))
        for part in known
        for key in given[part]
        if key not in known[part]
    ]
    if not any(location in raw for location in LOCATIONS):
        why = f"alignlab cannot read its location ({', '.join(sorted(raw.keys() & set(ELSEWHERE))) or 'none is given'})"
        faults.append(InputError(asked, why, "Add file_name (beside the registry) or hf_hub_url"))
    return faults


def translate(record: Record, entry: Entry) -> Record:
    """Translate the keys and roles of a record to those that the formats know.

    Args:
        record: A record of the entry's data.
        entry: The registry entry of the data.
    """
    if not isinstance(record.value, dict):
        return record
    named = set(entry.columns.values())
    value = {key: item for key, item in record.value.items() if key in named or key not in ONLY_WHERE_NAMED}
    if entry.tags:
        dialogues = {entry.columns.get(name) for name in ("messages", "chosen", "rejected")}
        value = {key: _retag(item, entry.tags) if key in dialogues else item for key, item in value.items()}
    return record._replace(value=value)


def _retag(value: Any, tags: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_retag(item, tags) for item in value]
    role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    if not isinstance(value, dict) or role not in value:
        return value
    roles = {tags[tag]: ours for tag, ours in ROLE_TAGS.items() if tag in tags}
    rest = {key: item for key, item in value.items() if key not in (role, content)}
    name = value[role]
    new = {"role": roles.get(name, name) if isinstance(name, str) else name}
    return rest | new | ({"content": value[content]} if content in value else {})
