"""Serve a trained model by vLLM, with OpenAI's API."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import model_from_words, path_as_key
from alignlab.config.schema import check_keys
from alignlab.config.schema.root import SERVE


def main(words: Sequence[str]) -> int:
    """Start the server and wait until it ends.

    Args:
        words: Command line after the verb: a model, and ``key=value``.

    Returns:
        Exit code.
    """
    return command("serve", path_as_key(words, "from"), partial(check_keys, sections=SERVE), serve)


def serve(config: dict[str, Any]) -> None:
    """Merge an adapter, and run the server."""
    from alignlab.errors import RunError
    from alignlab.models.export import ExportError
    from alignlab.rollout.vllm.launch import environment_of
    from alignlab.rollout.vllm.serving import find_vllm, readable_by_vllm, run_server, server_command
    from alignlab.run_folder import console
    from alignlab.system.listening import address_error

    console.set_up(config["debug"])
    executable = find_vllm(config["vllm_executable"])
    if error := address_error(config["host"], config["port"]):
        raise error
    asked = f"serving {config['from']}"
    options = {key: config[key] for key in ("host", "port", "dtype", "trust_remote_code", "arguments")}
    try:
        with (
            model_from_words(),
            readable_by_vllm(config["from"], config["to"], config["trust_remote_code"]) as model,
        ):
            words = server_command(executable, model, name=config["from"], **options)
            print(f"http://{config['host']}:{config['port']}/v1, model {config['from']}", flush=True)
            code = run_server(words, environment_of(executable, config["cpu_cache_gib"]))
    except ExportError as error:
        raise RunError(asked, str(error), "Type alignlab export, with a larger max_logit_difference") from error
    if code != 0:
        raise RunError(asked, f"vLLM ended with exit code {code}", "Its own messages are above")
