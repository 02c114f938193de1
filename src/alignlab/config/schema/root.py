"""Types of the root of a config, and of the sections without a ``_target_``."""

from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from alignlab.chat.settings import SpeakerSettings
from alignlab.data.settings import LoadSettings, PlanSettings, TokenSettings
from alignlab.measures.settings import TaskSettings
from alignlab.metrics import Mode
from alignlab.rewards.judge.settings import ChatSettings
from alignlab.types.dtypes import Dtype


def _with_target(node: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in node:
        raise PydanticCustomError("no_target", "Input should be an option of the group, or have a _target_")
    return node


Node = Annotated[dict[str, Any], AfterValidator(_with_target)]
"""``_target_`` and its keyword arguments, which are checked against the signature of the target."""

Nodes = dict[str, Node | None]
"""Nodes by name; null for none."""

Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, lt=2**16)]


class Data(TypedDict):
    """The source of rows; other keys of ``data`` are fields of the settings of the data module."""

    source: Node
    path: str | list[str] | None
    format: str
    columns: dict[str, str | None]
    validation_path: str | list[str] | dict[str, str | list[str]] | None


class CheckpointSection(TypedDict):
    """How often checkpoints are written, how many are kept, and which weights the run ends with."""

    every_n_steps: Count | None
    every_n_epochs: Count | None
    keep_last: Count
    also_model: bool
    best: str | None
    best_mode: Mode | None


class Launcher(TypedDict):
    """Number of jobs of a sweep that run at a time."""

    num_jobs: Count


class Train(TypedDict):
    """Root of ``alignlab train``."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    run_dir: str | None
    resume: str | None
    overwrite: bool
    init_from: str | None
    debug: bool
    tags: list[str]
    method: Node
    model: Node
    data: dict[str, Any]
    peft: Node | None
    rollout: Node | None
    strategy: Node
    optimizer: Node
    scheduler: Node
    trainer: Node
    checkpoint: dict[str, Any]
    logger: Nodes
    callbacks: Nodes
    launcher: dict[str, Any]
    objective: str


Hints = dict[str, Any]
"""Types with ranges, by key."""


def _hints(*classes: type) -> Hints:
    return {key: hint for kind in classes for key, hint in get_type_hints(kind, include_extras=True).items()}


DERIVED = ("seed", "number_columns", "weight_column", "weighs_turns")
"""Data settings that are derived from others."""

SECTIONS: dict[str, Hints] = {
    "": _hints(Train),
    "data": {k: v for k, v in _hints(Data, TokenSettings, PlanSettings, LoadSettings).items() if k not in DERIVED},
    "checkpoint": _hints(CheckpointSection),
    "launcher": _hints(Launcher),
}
"""Sections of ``alignlab train`` by dotted key, the root under ``""``; all others are nodes with ``_target_``."""


class PreviewRoot(Train):
    """Root of ``alignlab preview``."""

    preview: dict[str, Any]


class Preview(TypedDict):
    """How many rows to show, and the HTML file to write."""

    num_rows: Annotated[int, Field(ge=0)]
    html: str | None


PREVIEW = SECTIONS | {"": _hints(PreviewRoot), "preview": _hints(Preview)}
"""Sections of ``alignlab preview``."""


class EstimateRoot(Train):
    """Root of ``alignlab estimate``."""

    estimate: dict[str, Any]


class Estimate(TypedDict):
    """What the training would run on, its assumed utilisation, and a file of the numbers."""

    hardware: str | None
    mfu: Annotated[float, Field(gt=0, le=1)]
    json: str | None


ESTIMATE = SECTIONS | {"": _hints(EstimateRoot), "estimate": _hints(Estimate)}
"""Sections of ``alignlab estimate``."""

REPORT: dict[str, Hints] = {"": {"from": list[str], "to": str, "metric": str | None, "debug": bool}}
"""Sections of ``alignlab report``."""

DASHBOARD: dict[str, Hints] = {
    "": {
        **{"from": list[str], "project": str | None, "entity": str | None, "name": str, "to": str | None},
        "debug": bool,
    }
}
"""Sections of ``alignlab dashboard``."""

COMPARE: dict[str, Hints] = {"": {"from": list[str], "debug": bool}}
"""Sections of ``alignlab compare``."""

OPENED: Hints = {"from": str, "dtype": Dtype, "device": str, "trust_remote_code": bool, "debug": bool}
"""Keys of every verb that opens a trained model."""

TEMPLATE: Hints = {"chat_template": str, "chat_template_kwargs": dict[str, Any]}

CHAT: dict[str, Hints] = {
    "": {
        **OPENED,
        **TEMPLATE,
        **{"system": str | None, "seed": int | None, "sampling": dict[str, Any]},
        **{"ui": Literal["terminal", "web"], "against": str | None, "num_answers": Count, "votes": str},
        **{"host": str, "port": Port},
    },
    "sampling": _hints(SpeakerSettings),
}
"""Sections of ``alignlab chat``."""

EXPORT: dict[str, Hints] = {
    "": {
        **{key: hint for key, hint in OPENED.items() if key != "device"},
        **{"to": str, "merge": bool, "max_shard_size": str, "push_to": str | None},
        "max_logit_difference": Annotated[float, Field(gt=0)] | None,
    }
}
"""Sections of ``alignlab export``."""


class Samples(TypedDict):
    """How many completions are sampled, and which of them pass."""

    num_completions: Count
    k: list[Count]
    pass_reward: float | None


class Judging(TypedDict):
    """The judge of comparisons; without an endpoint there is none."""

    endpoint: str | None
    model: str | None
    rubric: str


class Rewarding(TypedDict):
    """The rewards of ``alignlab evaluate``, under the keys that they have in training."""

    reward: Nodes
    reward_weights: list[float] | None
    reward_special_tokens: list[str]
    reward_limits: Node


EVALUATE: dict[str, Hints] = {
    "": {
        **OPENED,
        **{"against": str | None, "to": str | None, "seed": Annotated[int, Field(ge=0)], "num_rows": Count | None},
        "measures": list[Literal["loss", "samples", "pairs", "wins"]] | None,
        "rows": Literal["held_out", "all"],
        **{"data": dict[str, Any] | None, "method": dict[str, Any], "rollout": Node, "samples": dict[str, Any]},
        **{"tasks": dict[str, Any], "judge": dict[str, Any], "to_tracker": bool},
    },
    "data": SECTIONS["data"],
    "method": _hints(Rewarding),
    "samples": _hints(Samples),
    "tasks": _hints(TaskSettings),
    "judge": _hints(ChatSettings, Judging),
}
"""Sections of ``alignlab evaluate``."""

SERVE: dict[str, Hints] = {
    "": {
        **{key: hint for key, hint in OPENED.items() if key != "device"},
        **{"to": str | None, "vllm_executable": str | None, "host": str, "port": Port},
        **{"cpu_cache_gib": Count, "arguments": list[str]},
    }
}
"""Sections of ``alignlab serve``."""
