"""Graphics cards: memory, speed and links, as their vendors publish them."""

import re
from dataclasses import dataclass
from typing import Any

from alignlab.errors import InputError, nearest
from alignlab.optim.throughput import PEAK_FLOPS

GIB = 2**30

CARDS_PER_MACHINE = 8
"""Cards that share fast links; more than these are spread over machines."""

NETWORK = 50e9
"""Bytes per second and card between machines: 400 Gbit/s, as in NVIDIA's DGX H100 and DGX B200."""


@dataclass(frozen=True)
class Card:
    """One kind of card.

    Args:
        name: As typed.
        num_bytes: Memory, as PyTorch reports it.
        flops: Dense bf16 FLOP/s.
        bandwidth: Bytes per second between the card and its memory.
        link: Bytes per second to another card of the machine, in one direction.
    """

    name: str
    num_bytes: int
    flops: float
    bandwidth: float
    link: float


# Memory in GiB as torch.cuda reports it. TB/s of memory and GB/s of links from the data sheets: NVLink counts both
# directions there, and so does PCIe 4.0 x16 with 64 GB/s.
_CARDS = {
    "a100": ("A100", 79.2, 2.039, 600),  # NVIDIA A100 80GB SXM
    "a100_40": ("A100", 39.4, 1.555, 600),  # NVIDIA A100 40GB SXM
    "h100": ("H100", 79.1, 3.35, 900),  # NVIDIA H100 SXM
    "h200": ("H200", 139.8, 4.8, 900),  # NVIDIA H200 SXM
    "b200": ("B200", 178.3, 7.7, 1800),  # NVIDIA DGX B200
    "l40s": ("L40S", 44.4, 0.864, 64),  # NVIDIA L40S, PCIe
    "rtx4090": ("4090", 23.6, 1.008, 64),  # NVIDIA GeForce RTX 4090, PCIe
}
CARDS = {
    name: Card(name, int(gib * GIB), PEAK_FLOPS[word], terabytes * 1e12, gigabytes * 1e9 / 2)
    for name, (word, gib, terabytes, gigabytes) in _CARDS.items()
}


@dataclass(frozen=True)
class Hardware:
    """Cards of one kind.

    Args:
        card: The kind; ``None`` for the main memory of a machine.
        number: How many.
    """

    card: Card | None
    number: int

    def __str__(self) -> str:
        return f"{self.number} × {self.card.name}" if self.card else f"{self.number} × CPU"

    @property
    def link(self) -> float:
        """Bytes per second that a card sends to others: the slowest link in a ring over all of them."""
        return min(self.card.link, NETWORK) if self.number > CARDS_PER_MACHINE else self.card.link

    @property
    def trainer(self) -> dict[str, Any]:
        """Settings of the trainer for these cards."""
        num_nodes = -(-self.number // CARDS_PER_MACHINE)
        return {"devices": self.number // num_nodes, "num_nodes": num_nodes}


def parse_hardware(word: str) -> Hardware:
    """Cards from a word such as ``h100x8``.

    Raises:
        InputError: There is no such card, or the number cannot be divided among machines.
    """
    match = re.fullmatch(r"(.+?)(?:x(\d+))?", word)
    name, number = match[1].lower(), int(match[2] or 1)
    if name not in CARDS:
        raise InputError(f"estimate.hardware={word}", "there is no such card in the table", nearest(name, CARDS))
    hardware = Hardware(CARDS[name], number)
    if number < 1 or number % hardware.trainer["num_nodes"]:
        why = f"they cannot be divided equally among machines with up to {CARDS_PER_MACHINE} cards"
        raise InputError(f"estimate.hardware={word}", why, f"Type estimate.hardware={name}x{CARDS_PER_MACHINE}")
    return hardware
