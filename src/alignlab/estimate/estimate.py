"""The estimate of a run: its memory, its work, and whether it fits."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alignlab.distributed.launch import num_local_processes, uses_cuda
from alignlab.estimate.build import Models, build_run
from alignlab.estimate.cards import CARDS, Card, Hardware, parse_hardware
from alignlab.estimate.memory import Memory, Run, memory
from alignlab.estimate.work import Work, work

Config = Mapping[str, Any]

UNKNOWN_CARD = Card("card", 0, flops=100e12, bandwidth=1e12, link=32e9)
"""Speeds that are assumed of a card which ``CARDS`` does not have: of a recent one for desktops, on PCIe 4.0 x16."""


class Estimate(NamedTuple):
    """The estimate of a run.

    Args:
        run: Sizes that it is computed from.
        memory: Of one process.
        work: Of one optimizer step.
        capacity: Bytes that a process may have.
    """

    run: Run
    memory: Memory
    work: Work
    capacity: int

    @property
    def fits(self) -> bool:
        """Whether a process has enough memory."""
        return self.memory.peak <= self.capacity


def estimate(config: Config, models: Models, hardware: Hardware, mfu: float) -> Estimate:
    """Estimate a run without its weights.

    Args:
        config: Checked and resolved.
        models: Of the run's data.
        hardware: What it runs on.
        mfu: Assumed model FLOPs utilisation.
    """
    run = build_run(config, models, hardware)
    return Estimate(run, memory(run), work(run, mfu), capacity(hardware))


def hardware_of(config: Config, word: str | None) -> Hardware:
    """The cards of a word, or for ``None`` this machine: its cards if it has some, else its main memory."""
    if word is not None:
        return parse_hardware(word)
    trainer = config["trainer"]
    number = num_local_processes(trainer["devices"], trainer["accelerator"]) * trainer["num_nodes"]
    if not uses_cuda(trainer["accelerator"]):
        return Hardware(None, number)
    found = torch.cuda.get_device_properties(0)
    name = found.name.upper().replace(" ", "")
    known = next((card for card in CARDS.values() if card.name.upper() in name), None)
    known = known or replace(UNKNOWN_CARD, name=found.name)
    return Hardware(replace(known, num_bytes=found.total_memory), number)


def capacity(hardware: Hardware) -> int:
    """Bytes that one process may have: its card, or its part of the main memory of this machine."""
    if hardware.card is not None:
        return hardware.card.num_bytes
    return main_memory() // hardware.number


def main_memory() -> int:
    """Bytes of the machine's main memory, or of the limit of this process's control group if that is less."""
    words = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(words["MemTotal"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total
