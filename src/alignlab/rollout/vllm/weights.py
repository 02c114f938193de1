"""Weight updates: send the weights of the policy, or of its adapter, to servers, and check that the servers use them.

Files are written to a folder that the servers see (shared memory on one machine). The check uses a fixed sequence of
tokens, the probe: the server's log-probs of it must agree with the training forward and, if the update changes them
enough, be closer to those of the new weights than to those of the old ones. Checksums are not enough: on a CPU, vLLM
computes with packed copies of the weights, and reports the checksums of the originals.
"""

import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignlab.errors import InputError
from alignlab.rollout.vllm.client import ServerInfo, Unreachable, call

CLEAR = 4.0
"""An update is distinguishable if it changes the probe by this many times the usual difference of the two engines."""

ROUNDING = 1e-6
"""Lower bound of the usual difference of two engines, in nats."""

PREFIX = "alignlab"


class ArrivalError(RuntimeError):
    """A server does not use the weights that were sent."""


@dataclass(frozen=True)
class Probe:
    """A sequence of tokens, and log-probs of its last tokens in the training forward.

    Args:
        tokens: Token ids, at least two; best a real prompt with its completion.
        logps: Log-probs of the last ``len(logps)`` tokens, at temperature 1.
    """

    tokens: Sequence[int]
    logps: Sequence[float]


@dataclass(frozen=True)
class WeightUpdate:
    """A weight update in the shared folder.

    Args:
        folder: Folder with a PEFT adapter, or with safetensors of the full model.
        version: Name of the update on the servers.
    """

    folder: Path
    version: str

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter."""
        return (self.folder / "adapter_config.json").exists()

    def model(self, info: ServerInfo) -> str:
        """Model name for requests to a server."""
        return self.version if self.is_adapter else info.model


class UpdateFolder:
    """The folder of this process in ``weights_dir``, for its weight updates.

    Args:
        weights_dir: Folder that the servers see too.
    """

    def __init__(self, weights_dir: str):
        self.name = f"{PREFIX}-{socket.gethostname()}-{os.getpid()}"
        self.parent, self.count = Path(weights_dir), 0
        _remove_orphans(self.parent)

    def write(self, write: Callable[[Path], None]) -> WeightUpdate:
        """Write the next update. The last one is kept until ``remove``.

        Raises:
            InputError: The folder does not exist or is full.
        """
        self.count += 1
        folder = self.parent / self.name / str(self.count)
        try:
            folder.mkdir(parents=True)
            write(folder)
        except OSError as error:
            instead = "Name a folder that the servers see, with space for the model, or enlarge the shared memory"
            raise InputError(f"rollout.weights_dir={self.parent}", str(error), instead) from error
        return WeightUpdate(folder, f"{self.name}-{self.count}")

    def remove(self, update: WeightUpdate) -> None:
        """Remove an update."""
        shutil.rmtree(update.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all updates."""
        shutil.rmtree(self.parent / self.name, ignore_errors=True)


def _remove_orphans(parent: Path) -> None:
    """Remove the updates of dead processes of this machine, which would fill its memory."""
    stem = f"{PREFIX}-{socket.gethostname()}-"
    for folder in parent.glob(f"{stem}*"):
        process = folder.name.removeprefix(stem)
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def send(url: str, info: ServerInfo, update: WeightUpdate, *, timeout_seconds: float) -> None:
    """Load an update on a server, and reset its prefix cache.

    Raises:
        Unreachable, Refused: As in ``call``.
    """

    def post(path: str, **body):
        return call(url, path, body, timeout_seconds=timeout_seconds)

    if update.is_adapter:
        served = call(url, "/v1/models", timeout_seconds=timeout_seconds)["data"]
        for name in [model["id"] for model in served if model["id"].startswith(f"{PREFIX}-")]:
            post("/v1/unload_lora_adapter", lora_name=name)
        post("/v1/load_lora_adapter", lora_name=update.version, lora_path=str(update.folder))
    else:
        post("/collective_rpc", method="reload_weights", kwargs={"weights_path": str(update.folder)})
        if info.packs_tied_head:
            post("/collective_rpc", method="pack_tied_head")
    if not post("/reset_prefix_cache")["success"]:
        raise Unreachable(f"{url} did not reset its prefix cache, because requests are still running")
    post("/update_weight_version", new_version=update.version)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def check_arrival(
    url: str, logps: Sequence[float], new: Probe, old: Probe | None, usual_difference: float, tolerance: float
) -> float:
    """Compare a server's log-probs of the probe with the trainer's.

    Args:
        url: URL of the server, for messages.
        logps: The server's log-probs.
        new: The probe under the new weights.
        old: The probe under the previous weights; ``None`` for the first update.
        usual_difference: Mean difference of server and trainer after the previous update, in nats per token.
        tolerance: Maximum mean difference, in nats per token.

    Returns:
        The mean difference, in nats per token.

    Raises:
        ArrivalError: Server and trainer differ, or the server still has the old weights.
    """
    difference = distance(logps, new.logps)
    if not difference <= tolerance:
        raise ArrivalError(
            f"{url} does not use the weights that were sent: its log-probs of the probe differ from the "
            f"trainer's by {difference:.3g} nats per token, more than rollout.arrival_tolerance={tolerance:g}"
        )
    is_distinguishable = old is not None and distance(old.logps, new.logps) > CLEAR * max(usual_difference, ROUNDING)
    if is_distinguishable and distance(logps, old.logps) <= difference:
        raise ArrivalError(f"{url} still uses the weights from before the last update")
    return difference
