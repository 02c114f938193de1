"""What may differ between a run and its continuation, and between a run and a branch of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from alignlab.errors import InputError
from alignlab.system.credentials import blanked

NOT_HASHED = ("run_dir", "resume", "debug", "launcher")
"""Keys of the config that say where or how a run is watched, not what it is."""

SERVERS = (
    "vllm_executable", "urls", "num_servers", "devices", "environment", "arguments", "gpu_memory_fraction",
    "cpu_cache_gib", "weights_dir", "timeout_seconds", "num_restarts", "batch_size",
)  # fmt: skip
"""Keys of ``rollout`` that say where completions are drawn, not which."""

MAY_CHANGE = {*NOT_HASHED, "tags", "trainer", "checkpoint", "logger", "callbacks", "data.cache_dir", "data.fresh"}
MAY_CHANGE |= {f"rollout.{key}" for key in SERVERS}
"""What may differ when a run is continued: how long it trains and how it is watched, not what it is."""

BRANCH_MAY_CHANGE = MAY_CHANGE | {"seed", "strategy"}
"""What may differ in a branch. Not more: the state of the optimizer and of the schedule would overrule it unseen, and
the position in the data is one of other data."""

MAX_SHOWN = 5


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], *, is_branch: bool) -> list[str]:
    """Refuse to go on from a checkpoint as something that its state does not fit.

    Args:
        before: Config of the run that wrote the checkpoint.
        now: Config of the run that goes on from it.
        is_branch: Whether it goes on in a folder of its own.

    Returns:
        What differs and may, as ``key=value (was value)``.

    Raises:
        InputError: Names what differs and may not.
    """
    forbidden = differences(before, now, besides=BRANCH_MAY_CHANGE if is_branch else MAY_CHANGE)
    if forbidden:
        why = "it goes on as what it was, with the state of the optimizer, the schedule and the position in the data"
        instead = (
            "Type alignlab train --from RUN resume=RUN to continue it, or init_from=RUN to start anew from its model"
        )
        raise InputError(f"resuming with {shown(forbidden)}", why, instead)
    return differences(before, now, besides=set(NOT_HASHED))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, besides: set[str]) -> list[str]:
    """Dotted keys whose values differ, as ``key=value (was value)``.

    Args:
        before: A config.
        now: Another.
        besides: Keys that are passed over, with all below them.
    """
    was, is_ = (dict(_leaves("", blanked(config), besides)) for config in (before, now))
    changed = [key for key in sorted(was.keys() | is_.keys()) if was.get(key) != is_.get(key)]
    return [f"{key}={is_.get(key)} (was {was.get(key)})" for key in changed]


def shown(changes: list[str]) -> str:
    """The first few, on one line."""
    return f"{', '.join(changes[:MAX_SHOWN])}{', …' if len(changes) > MAX_SHOWN else ''}"


def _leaves(path: str, tree: Any, besides: set[str]) -> Iterator[tuple[str, Any]]:
    if path in besides:
        return
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), value, besides)
    else:
        yield path, tree
