"""A trained model behind vLLM's server, which speaks OpenAI's API."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from alignlab.errors import InputError
from alignlab.models.locations import locate
from alignlab.models.publish import publish, stored_head
from alignlab.rollout.vllm.launch import MODULE, device_flags
from alignlab.system.processes import signal_when_parent_ends

OWN_ENVIRONMENT = Path(".venv-vllm") / "bin" / "python"
"""The Python that ``make vllm`` creates."""

SECONDS_TO_END = 30


def find_vllm(executable: str | None) -> str:
    """The Python of an environment with vLLM.

    Args:
        executable: As typed; ``None`` for this Python if it has vLLM, or else the one of ``make vllm``.

    Raises:
        InputError: There is none.
    """
    here = sys.executable if find_spec("vllm") else str(OWN_ENVIRONMENT)
    found = executable or here
    if not os.access(found, os.X_OK):
        asked = f"vllm_executable={executable}" if executable else "alignlab serve"
        why = "there is no such program" if executable else "vLLM is not installed"
        instead = 'Type pip install "alignlab[vllm]", or make vllm, or vllm_executable=PYTHON of an environment with it'
        raise InputError(asked, why, instead)
    return found


@contextmanager
def readable_by_vllm(path: str, to: str | None, trust_remote_code: bool) -> Iterator[str]:
    """A folder or hub id with full weights: the model itself, or an adapter merged into its base.

    Args:
        path: As in ``locations.locate``.
        to: New folder for merged weights; ``None`` for one that is removed at the end.
        trust_remote_code: Run the code that comes with the weights.

    Raises:
        InputError: There is no model, it gives scores and no text, or it cannot be merged; or ``to`` is not empty.
        ExportError: The merged weights give other logits.
    """
    location = locate(path)
    if stored_head(location) == "reward":
        raise InputError(f"from={path}", "it is a reward model, which gives scores and no text", "Name another model")
    if location.adapter is None:
        if to is not None:
            instead = "Leave to= out, or type alignlab export to copy it"
            raise InputError(f"to={to}", f"{path} has full weights, which vLLM reads as they are", instead)
        yield location.weights
        return
    options = {"merge": True, "dtype": "auto", "max_shard_size": "5GB", "max_logit_difference": None}
    with tempfile.TemporaryDirectory(prefix="alignlab_serve_") as temporary:
        folder = Path(to or temporary, "" if to else "model")
        yield str(publish(path, folder, **options, trust_remote_code=trust_remote_code).folder)


def server_command(
    executable: str,
    model: str,
    *,
    name: str,
    host: str,
    port: int,
    dtype: str,
    trust_remote_code: bool,
    arguments: Sequence[str],
) -> list[str]:
    """The command line of the server, which takes stop tokens, sampling defaults and template from the model's folder.

    Args:
        executable: Python of an environment with vLLM.
        model: Folder or hub id.
        name: Name of the model in requests.
        host: Address to listen at.
        port: Port to listen at.
        dtype: Dtype of weights and computation.
        trust_remote_code: Run the code that comes with the weights.
        arguments: Further arguments of the server.
    """
    options = {"model": model, "served-model-name": name, "host": host, "port": port, "dtype": dtype}
    pairs = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    return [executable, "-m", MODULE, *pairs, *["--trust-remote-code"] * trust_remote_code, *device_flags(), *arguments]


def run_server(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the server until it ends, or this process is asked to; it never outlives this process.

    Args:
        command: Its command line.
        environment: Its environment variables.

    Returns:
        Its exit code.
    """
    end_with_us = partial(signal_when_parent_ends, signal.SIGTERM)
    process = subprocess.Popen(command, env=environment, preexec_fn=end_with_us)
    try:
        return process.wait()
    finally:
        process.terminate()  # no effect if it has ended
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
