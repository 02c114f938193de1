"""Settings that may differ between a run and its continuation, and between a run and a branch of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from alignlab.errors import InputError
from alignlab.system.credentials import blanked

NOT_HASHED = ("run_dir", "resume", "overwrite", "debug", "launcher", "objective")
"""Keys of the config that do not affect what is trained: where the run is stored, started and debugged,
and what a search makes of its result."""

SERVERS = (
    "vllm_executable", "urls", "num_servers", "devices", "environment", "arguments", "gpu_memory_fraction",
    "cpu_cache_gib", "weights_dir", "timeout_seconds", "num_restarts", "batch_size",
)  # fmt: skip
"""Keys of ``rollout`` that decide where completions are sampled, not which."""

MAY_CHANGE = {*NOT_HASHED, "tags", "trainer", "checkpoint", "logger", "callbacks", "data.cache_dir", "data.fresh"}
MAY_CHANGE |= {f"rollout.{key}" for key in SERVERS}
"""Keys that may change when a run is continued: how long it trains, and how it is stored and logged."""

BRANCH_MAY_CHANGE = MAY_CHANGE | {"seed", "strategy"}
"""Keys that may change in a branch. Others may not: the state of the optimizer and of the schedule would silently
override them, and the position in the data would not fit other data."""

MAX_SHOWN = 5


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], *, is_branch: bool) -> list[str]:
    """Check that a config fits the checkpoint that a run resumes from.

    Args:
        before: Config of the run that wrote the checkpoint.
        now: Config of the run that resumes from it.
        is_branch: Whether the run resumes in a new folder.

    Returns:
        The allowed changes, as ``key=value (was value)``.

    Raises:
        InputError: A key changed that may not; the error names all of them.
    """
    forbidden = differences(before, now, besides=BRANCH_MAY_CHANGE if is_branch else MAY_CHANGE)
    if forbidden:
        why = "a run resumes with the state of its optimizer, its schedule and its position in the data"
        instead = (
            "Type alignlab train --from RUN resume=RUN to continue it, or init_from=RUN to start anew from its model"
        )
        raise InputError(f"resuming with {shown(forbidden)}", why, instead)
    return differences(before, now, besides=set(NOT_HASHED))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, besides: set[str]) -> list[str]:
    """Dotted keys whose values differ, as ``key=value (was value)``.

    Args:
        before: A config.
        now: Another config.
        besides: Keys to ignore, with everything below them.
    """
    old, new = (dict(_leaves("", blanked(config), besides)) for config in (before, now))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [f"{key}={new.get(key)} (was {old.get(key)})" for key in changed]


def shown(changes: list[str]) -> str:
    """The first few changes in one line."""
    return f"{', '.join(changes[:MAX_SHOWN])}{', …' if len(changes) > MAX_SHOWN else ''}"


def _leaves(path: str, node: Any, besides: set[str]) -> Iterator[tuple[str, Any]]:
    if path in besides:
        return
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), value, besides)
    else:
        yield path, node
