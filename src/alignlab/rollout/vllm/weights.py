"""Sending the policy's weights, or only its adapter, to servers, and proving that they arrived.

Files go through a folder that the servers see (shared memory on one machine). The proof is a fixed sequence of tokens,
the probe: the server's log-probabilities of it must be those of the training forward, and nearer to those of the new
weights than to those of the old ones wherever the two can be told apart. Checksums are no proof: vLLM computes on a CPU
with packed copies of the weights, and tells the checksums of what they were packed from.
"""

import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignlab.errors import InputError
from alignlab.rollout.vllm.client import Facts, Unreachable, call

CLEAR = 4.0
"""An update can be told apart where it moves the probe by this many times the usual difference of two engines."""

ROUNDING = 1e-6
"""Least difference, nats, that two engines are taken to have."""

PREFIX = "alignlab"


class ArrivalError(RuntimeError):
    """What was sent is not what the server computes with."""


@dataclass(frozen=True)
class Probe:
    """A sequence of tokens, and what the training forward says of it.

    Args:
        tokens: Token ids, two at least; a real prompt with its completion tells most.
        logps: Log-probabilities, at temperature 1, of the last of them, as many as there are here.
    """

    tokens: Sequence[int]
    logps: Sequence[float]


@dataclass(frozen=True)
class Shipment:
    """An update as it lies in the shared folder.

    Args:
        folder: Holds a PEFT adapter, or safetensors of the whole model.
        version: Name under which servers know it.
    """

    folder: Path
    version: str

    @property
    def is_adapter(self) -> bool:
        """Whether only an adapter is sent."""
        return (self.folder / "adapter_config.json").exists()

    def model(self, facts: Facts) -> str:
        """Name to ask the server for."""
        return self.version if self.is_adapter else facts.model


class Outbox:
    """The folder of this process in ``weights_dir``; holds one update at a time.

    Args:
        weights_dir: Seen by the servers too.
    """

    def __init__(self, weights_dir: str):
        self.owner = f"{PREFIX}-{socket.gethostname()}-{os.getpid()}"
        self.parent, self.count = Path(weights_dir), 0
        _remove_orphans(self.parent)

    def write(self, write: Callable[[Path], None]) -> Shipment:
        """Write the next update beside the last one.

        Raises:
            InputError: There is no such folder, or no room in it.
        """
        self.count += 1
        folder = self.parent / self.owner / str(self.count)
        try:
            folder.mkdir(parents=True)
            write(folder)
        except OSError as error:
            instead = "Name a folder with room for the model that the servers see too, or enlarge the shared memory"
            raise InputError(f"rollout.weights_dir={self.parent}", str(error), instead) from error
        return Shipment(folder, f"{self.owner}-{self.count}")

    def remove(self, shipment: Shipment) -> None:
        """Remove an update that servers no longer need."""
        shutil.rmtree(shipment.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all that was written."""
        shutil.rmtree(self.parent / self.owner, ignore_errors=True)


def _remove_orphans(parent: Path) -> None:
    """Remove what killed processes of this machine have left, which would fill its memory."""
    stem = f"{PREFIX}-{socket.gethostname()}-"
    for folder in parent.glob(f"{stem}*"):
        process = folder.name.removeprefix(stem)
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def send(url: str, facts: Facts, shipment: Shipment, *, timeout_seconds: float) -> None:
    """Make a server compute with an update, and forget what it kept of the weights before.

    Raises:
        Unreachable, Refused: As in ``call``.
    """

    def say(path: str, **body):
        return call(url, path, body, timeout_seconds=timeout_seconds)

    if shipment.is_adapter:
        served = call(url, "/v1/models", timeout_seconds=timeout_seconds)["data"]
        for name in [model["id"] for model in served if model["id"].startswith(f"{PREFIX}-")]:
            say("/v1/unload_lora_adapter", lora_name=name)
        say("/v1/load_lora_adapter", lora_name=shipment.version, lora_path=str(shipment.folder))
    else:
        say("/collective_rpc", method="reload_weights", kwargs={"weights_path": str(shipment.folder)})
        if facts.packs_tied_head:
            say("/collective_rpc", method="pack_tied_head")
    if not say("/reset_prefix_cache")["success"]:
        raise Unreachable(f"{url} kept the prefixes of the old weights, because requests are still running")
    say("/update_weight_version", new_version=shipment.version)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def prove(url: str, answer: Sequence[float], new: Probe, old: Probe | None, usual: float, tolerance: float) -> float:
    """Hold a server's answer to the probe against the trainer's.

    Args:
        url: Of the server, for messages.
        answer: Its log-probabilities.
        new: The probe under the weights that were sent.
        old: The same under those sent before; ``None`` at first.
        usual: Difference of server and trainer under the weights before.
        tolerance: Largest mean difference, nats per token.

    Returns:
        The mean difference now.

    Raises:
        ArrivalError: Server and trainer differ, or the server still has the old weights.
    """
    difference = distance(answer, new.logps)
    if not difference <= tolerance:
        raise ArrivalError(
            f"{url} does not have the weights that were sent: its log-probabilities of the probe differ from the "
            f"trainer's by {difference:.3g} nats per token, more than rollout.arrival_tolerance={tolerance:g}"
        )
    can_tell = old is not None and distance(old.logps, new.logps) > CLEAR * max(usual, ROUNDING)
    if can_tell and distance(answer, old.logps) <= difference:
        raise ArrivalError(f"{url} still has the weights from before the last update")
    return difference
