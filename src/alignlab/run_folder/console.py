"""Setup of the terminal output: our log records, and only those warnings of libraries that the user should act on."""

import logging
import sys
import warnings
from typing import TextIO

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console, RenderableType
from transformers.utils import logging as transformers_logging

from alignlab.distributed.strategies.accelerator import prefer_cpu_without_cuda
from alignlab.run_folder.log import MaskedFormatter, terminal

PIPE_WIDTH = 110
"""Width of a card in characters if there is no terminal."""

# Warnings that every run would print and that do not apply here: the loaders plan for all ranks, sums are reduced over
# ranks before they are logged, and steps are planned as a whole. DeepSpeed calls collectives of PyTorch by old names,
# gradient checkpointing has another name in newer versions of Transformers than the oldest that is supported, and a run
# of no steps has no training batches.
EXPECTED = (
    ".*sync_dist=True.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*is smaller than the logging interval.*",
    ".*is_gradient_checkpointing.*deprecated.*",
    ".*module\\(s\\) in eval mode.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
    ".*optimizer.step.* has been overridden after learning rate scheduler initialization.*",
    ".*Total length of .* across ranks is zero.*",
    ".*`torch\\.distributed\\.\\w+_tensor` is deprecated.*",
    ".*`gradient_checkpointing_enable` is deprecated.*",
)


def set_up(debug: bool) -> None:
    """Show our log records as plain lines on rank 0, and silence the libraries.

    Args:
        debug: Show all records and warnings.
    """
    prefer_cpu_without_cuda()
    ours = logging.getLogger("alignlab")
    ours.setLevel(logging.DEBUG if debug else logging.INFO if rank_zero_only.rank == 0 else logging.WARNING)
    if not ours.handlers:
        handler = Terminal()
        handler.setFormatter(MaskedFormatter("%(message)s"))
        ours.addHandler(handler)
    if debug:
        return
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)


class Terminal(logging.StreamHandler):
    """Writes to the current standard error, without its copy in train.log, which gets every record already."""

    @property
    def stream(self) -> TextIO:
        """The current stream; setting it has no effect."""
        return terminal(sys.stderr)

    @stream.setter
    def stream(self, value: TextIO) -> None: ...


def show(card: RenderableType) -> None:
    """Print a card; in a file or a pipe with a fixed width."""
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(card)
