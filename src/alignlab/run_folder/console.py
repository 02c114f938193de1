"""What reaches the terminal: our own notes, and of the libraries' words only those that ask something of the user."""

import logging
import os
import sys
import warnings
from typing import TextIO

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console, RenderableType
from transformers.utils import logging as transformers_logging

from alignlab.run_folder.log import terminal

PIPE_WIDTH = 110
"""Columns of a card where there is no terminal."""

# Said at every run, about things that are as they should be here: the loaders plan for all ranks by themselves, sums
# are reduced over ranks before they are logged, steps are planned whole.
EXPECTED = (
    ".*sync_dist=True.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*is smaller than the logging interval.*",
    ".*is_gradient_checkpointing.*deprecated.*",
    ".*module\\(s\\) in eval mode.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
)


def set_up(debug: bool) -> None:
    """Show our notes as plain lines on rank 0, and quieten the libraries.

    Args:
        debug: Show everything.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    ours = logging.getLogger("alignlab")
    ours.setLevel(logging.DEBUG if debug else logging.INFO if rank_zero_only.rank == 0 else logging.WARNING)
    if not ours.handlers:
        handler = Terminal()
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
    if debug:
        return
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)


class Terminal(logging.StreamHandler):
    """Standard error as it is when a record comes, past its copy in train.log, where the record stands anyway."""

    @property
    def stream(self) -> TextIO:
        """The stream of the moment; what is set is not kept."""
        return terminal(sys.stderr)

    @stream.setter
    def stream(self, value: TextIO) -> None: ...


def show(card: RenderableType) -> None:
    """Print a card; in a file or a pipe as wide as its tables need."""
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(card)
