"""The vLLM servers of a run: prompts are distributed among them, weight updates are sent to all."""

import atexit
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from alignlab.rollout.completions import Completion
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.vllm import client, completions, weights
from alignlab.rollout.vllm.client import ServerInfo, Unreachable
from alignlab.rollout.vllm.launch import servers
from alignlab.rollout.vllm.server import Server, ServerError
from alignlab.rollout.vllm.settings import VLLMSettings
from alignlab.rollout.vllm.weights import Probe, UpdateFolder, WeightUpdate

log = logging.getLogger(__name__)

NUM_ATTEMPTS = 3
"""Number of attempts to sample prompts or send weights when servers fail."""


class Engine:
    """Samples from servers, and keeps their weights equal to those of the policy. Used by one process of a run.

    Args:
        servers: Servers to start, or external servers.
        settings: Settings of the servers.
    """

    def __init__(self, servers: Sequence[Server], settings: VLLMSettings):
        self.servers, self.settings = servers, settings
        self.server_info: dict[str, ServerInfo] = {}
        self.usual_difference: dict[str, float] = {}
        self.update_folder = UpdateFolder(settings.weights_dir)
        self.current_update: WeightUpdate | None = None
        self.probe: Probe | None = None
        atexit.register(self.close)

    def start(self) -> None:
        """Start the servers, and wait until all respond. They end with the thread that calls this.

        Raises:
            ServerError: A server does not start; the message has the last lines of its log.
            InputError: A server runs without the endpoints for weight updates.
        """
        for server in self.servers:
            server.start()
        for server in self.servers:
            server.wait(self.settings.timeout_seconds)
            self.server_info[server.url] = client.server_info(server.url, timeout_seconds=self.settings.timeout_seconds)

    def close(self) -> None:
        """Stop the servers that this engine started, and remove the weight files."""
        atexit.unregister(self.close)
        self.update_folder.close()  # first, because files in shared memory outlive a process that is killed
        for server in self.servers:
            server.request_stop()
        for server in self.servers:
            server.stop()

    def update(self, write: Callable[[Path], None], probe: Probe) -> float:
        """Send the weights of the policy to all servers, and check by the probe that they use them.

        Args:
            write: Writes the policy to a folder, as safetensors or as a PEFT adapter.
            probe: Log-probs of the probe under these weights in the training forward; its tokens never change.

        Returns:
            Largest mean difference of a server's log-probs of the probe from the trainer's, in nats per token.

        Raises:
            ArrivalError: A server uses other weights.
            ServerError: A server has failed.
            InputError: ``rollout.weights_dir`` is full or does not exist.
        """
        before, self.current_update = self.current_update, self.update_folder.write(write)
        old, self.probe = self.probe, probe
        try:
            answers = self._send_to(self.servers)
        finally:
            if before is not None:
                self.update_folder.remove(before)
        for url, answer in answers.items():
            usual, tolerance = self.usual_difference.get(url, 0.0), self.settings.arrival_tolerance
            self.usual_difference[url] = weights.check_arrival(url, answer, probe, old, usual, tolerance)
        return max(self.usual_difference.values())

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_completions: int,
        settings: SamplingSettings,
        seeds: Sequence[int],
        on_prompt: Callable[[list[Completion]], None] = lambda completions: None,
    ) -> list[list[Completion]]:
        """Sample completions of prompts. The weights and prompts of a server that restarts are sent again.

        Args:
            prompts: Token ids of P prompts, none empty.
            num_completions: G, the number of completions per prompt.
            settings: Sampling settings.
            seeds: One per prompt, below 2**62; at least G apart, because the completions of a prompt use consecutive
                seeds.
            on_prompt: Called with the completions of each prompt as they arrive.

        Returns:
            G completions per prompt, in the order of the prompts.

        Raises:
            ServerError: A server has failed.
            InputError: A prompt is too long, or a server runs in the wrong ``--logprobs-mode``.
        """
        for server in self.servers:
            completions.check_mode(server.url, self.server_info[server.url].logprobs_mode, settings)
        context = min(info.context for info in self.server_info.values())
        seconds = self.settings.timeout_seconds

        def ask(index: int, server: Server) -> list[Completion]:
            body = completions.completion_request(
                self._model(server),
                prompts[index],
                num_completions=num_completions,
                settings=settings,
                seed=seeds[index],
                context=context,
            )
            return completions.complete(server.url, body, num_completions=num_completions, timeout_seconds=seconds)

        found: dict[int, list[Completion]] = {}
        for _ in range(NUM_ATTEMPTS):
            self._make_current()
            missing = [index for index in range(len(prompts)) if index not in found]
            num_at_once = max(1, self.settings.batch_size // num_completions)
            drawn, errors = self._ask_servers(missing, ask, num_at_once, on_prompt)
            for server in self.servers:
                # A server that was restarted in the meantime has sampled from its initial weights.
                if server.url not in errors and self._is_current(server):
                    found |= drawn[server.url]
            if len(found) == len(prompts):
                return [found[index] for index in range(len(prompts))]
            why = next(iter(errors.values()), "a server was restarted")
            log.warning("%s; %d of %d prompts are requested again", why, len(prompts) - len(found), len(prompts))
        raise ServerError(f"sampling failed {NUM_ATTEMPTS} times: {why}")

    def _ask_servers(
        self,
        indices: Sequence[int],
        ask: Callable[[int, Server], list[Completion]],
        num_at_once: int,
        on_prompt: Callable[[list[Completion]], None],
    ) -> tuple[dict[str, dict[int, list[Completion]]], dict[str, Unreachable]]:
        """Distribute prompts over the servers in turn. Returns the completions and the errors, both by URL."""
        drawn: dict[str, dict[int, list[Completion]]] = {server.url: {} for server in self.servers}
        errors: dict[str, Unreachable] = {}

        def attempt(position: int) -> list[Completion]:
            server = self.servers[position % len(self.servers)]
            if server.url in errors:
                return []
            try:
                found = drawn[server.url][indices[position]] = ask(indices[position], server)
            except Unreachable as error:
                errors[server.url], found = error, []
            return found

        with ThreadPoolExecutor(num_at_once) as pool:
            try:
                for future in as_completed([pool.submit(attempt, position) for position in range(len(indices))]):
                    on_prompt(future.result())
            except BaseException:
                self.close()  # otherwise the pool would wait for all running requests
                raise
        return drawn, errors

    def _make_current(self) -> None:
        """Wait for every server, and send the weights again to those that were restarted."""
        stale = [server for server in self.servers if not self._is_current(server)]
        for url, answer in self._send_to(stale).items():
            log.warning("the vLLM server %s was restarted; the weights were sent again", url)
            weights.check_arrival(url, answer, self.probe, None, 0.0, self.settings.arrival_tolerance)

    def _is_current(self, server: Server) -> bool:
        server.wait(self.settings.timeout_seconds)
        if self.current_update is None:
            return True
        try:
            held = client.call(server.url, "/weight_info", timeout_seconds=self.settings.timeout_seconds)
        except Unreachable:
            return False
        return held["weight_version"] == self.current_update.version

    def _send_to(self, receivers: Sequence[Server]) -> dict[str, list[float]]:
        """Send the current update, with retries. Returns the log-probs of the probe by URL."""
        answers: dict[str, list[float]] = {}
        left, failed = list(receivers), []
        for _ in range(NUM_ATTEMPTS):
            if not left:
                break
            for server in left:
                server.wait(self.settings.timeout_seconds)
            with ThreadPoolExecutor(len(left)) as pool:
                outcomes = list(zip(left, pool.map(self._send, left), strict=True))
            failed = [(server, error) for server, error in outcomes if isinstance(error, Unreachable)]
            left = [server for server, _ in failed]
            answers |= {server.url: answer for server, answer in outcomes if server not in left}
        if left:
            raise ServerError(f"sending weights failed {NUM_ATTEMPTS} times: {failed[0][1]}")
        return answers

    def _send(self, server: Server) -> list[float] | Unreachable:
        seconds = self.settings.timeout_seconds
        try:
            weights.send(server.url, self.server_info[server.url], self.current_update, timeout_seconds=seconds)
            answer = client.probe(server.url, self._model(server), self.probe.tokens, timeout_seconds=seconds)
            return answer[-len(self.probe.logps) :]
        except Unreachable as error:
            return error

    def _model(self, server: Server) -> str:
        info = self.server_info[server.url]
        return info.model if self.current_update is None else self.current_update.model(info)


def open_engine(
    settings: VLLMSettings,
    *,
    model: str | Path | Callable[[Path], None],
    sampling: SamplingSettings,
    lora_rank: int | None,
    log_dir: Path,
) -> Engine:
    """Start the servers of an engine.

    Args:
        settings: Settings of the servers.
        model: Initial weights without adapter: their folder, or a function that writes them to a folder, which is kept
            until the engine is closed.
        sampling: Sampling settings of training.
        lora_rank: Rank of the adapter that will be sent; ``None`` for full weights.
        log_dir: Folder for the logs of started servers.
    """
    mode = completions.logprobs_mode(sampling)
    engine = Engine([], settings)
    try:
        folder = engine.update_folder.write(model).folder if callable(model) and settings.urls is None else model
        engine.servers = servers(settings, model=folder, mode=mode, lora_rank=lora_rank, log_dir=log_dir)
        engine.start()
    except BaseException:
        engine.close()
        raise
    return engine
