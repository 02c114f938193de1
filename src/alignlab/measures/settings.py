"""Settings of published benchmarks."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from alignlab.types.settings import Settings


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """Which tasks of the harness are run, and how.

    Args:
        names: Tasks, groups or tags of the harness.
        include_path: Folder with tasks of one's own (YAML files of the harness), which may read local files.
        num_fewshot: Number of examples before each question; ``None`` for the number of the task.
        apply_chat_template: Whether questions are put as messages of the user.
        batch_size: Number of requests that are computed at a time.
    """

    names: list[str]
    include_path: str | None
    num_fewshot: Annotated[int, Field(ge=0)] | None
    apply_chat_template: bool
    batch_size: Annotated[int, Field(ge=1)]
