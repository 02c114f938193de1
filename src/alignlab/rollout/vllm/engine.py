"""All vLLM servers of a run as one sampler: prompts are split among them, updates go to each."""

import atexit
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alignlab.rollout.completions import Completion
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.vllm import client, completions, weights
from alignlab.rollout.vllm.client import Facts, Unreachable
from alignlab.rollout.vllm.launch import servers
from alignlab.rollout.vllm.server import Server, ServerError
from alignlab.rollout.vllm.settings import VLLMSettings
from alignlab.rollout.vllm.weights import Outbox, Probe, Shipment

log = logging.getLogger(__name__)

NUM_ATTEMPTS = 3
"""Times that prompts are asked for again after a server was lost over them."""


class Engine:
    """Samples from servers that are kept at the policy's weights. To be used by one process of a run.

    Args:
        servers: Not started yet, or somebody else's.
        settings: How to deal with them.
    """

    def __init__(self, servers: Sequence[Server], settings: VLLMSettings):
        self.servers, self.settings = servers, settings
        self.facts: dict[str, Facts] = {}
        self.usual: dict[str, float] = {}
        self.outbox = Outbox(settings.weights_dir)
        self.shipment: Shipment | None = None
        self.probe: Probe | None = None
        atexit.register(self.close)

    def start(self) -> None:
        """Start the servers, and wait until all answer. They end with the thread that calls this.

        Raises:
            ServerError: One does not come up; the message ends with the last lines of its log.
            InputError: One runs without the endpoints through which weights are sent.
        """
        for server in self.servers:
            server.start()
        for server in self.servers:
            server.wait(self.settings.timeout_seconds)
            self.facts[server.url] = client.facts(server.url, timeout_seconds=self.settings.timeout_seconds)

    def close(self) -> None:
        """End the servers that are ours, and remove what was written for them."""
        atexit.unregister(self.close)
        self.outbox.close()  # first: memory that would outlive a process that is killed meanwhile
        for server in self.servers:
            server.ask_to_end()
        for server in self.servers:
            server.stop()

    def update(self, write: Callable[[Path], None], probe: Probe) -> float:
        """Send the policy's weights to all servers and prove that they arrived.

        Args:
            write: Writes the policy into a folder, as Hugging Face safetensors or as a PEFT adapter.
            probe: The training forward's view of the same weights; its tokens are the same at each update.

        Returns:
            Largest mean difference of a server's view of the probe, nats per token.

        Raises:
            ArrivalError: A server computes with something else.
            ServerError: A server is gone.
            InputError: ``rollout.weights_dir`` has no room.
        """
        before, self.shipment = self.shipment, self.outbox.write(write)
        old, self.probe = self.probe, probe
        try:
            answers = self._deliver(self.servers)
        finally:
            if before is not None:
                self.outbox.remove(before)
        for url, answer in answers.items():
            usual = self.usual.get(url, 0.0)
            self.usual[url] = weights.prove(url, answer, probe, old, usual, self.settings.arrival_tolerance)
        return max(self.usual.values())

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_completions: int,
        settings: SamplingSettings,
        seeds: Sequence[int],
    ) -> list[list[Completion]]:
        """Draw completions of prompts. A server that comes back in time gets the weights again and its prompts too.

        Args:
            prompts: Token ids, none empty.
            num_completions: G.
            settings: How to draw.
            seeds: One per prompt, below 2**62 and far from each other: a server numbers a prompt's completions from it
                upwards.

        Returns:
            G completions per prompt, in the order of the prompts.

        Raises:
            ServerError: A server is gone.
            InputError: A prompt does not fit, or the servers report log-probabilities of another distribution.
        """
        for server in self.servers:
            completions.check_mode(server.url, self.facts[server.url].logprobs_mode, settings)
        context = min(facts.context for facts in self.facts.values())
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
            drawn, losses = self._spread(missing, ask, max(1, self.settings.batch_size // num_completions))
            for server in self.servers:
                # One that was started anew on the way has drawn from its first weights.
                if server.url not in losses and self._is_current(server):
                    found |= drawn[server.url]
            if len(found) == len(prompts):
                return [found[index] for index in range(len(prompts))]
            why = next(iter(losses.values()), "a server was started anew")
            log.warning("%s; %d of %d prompts are asked for again", why, len(prompts) - len(found), len(prompts))
        raise ServerError(f"prompts were asked for {NUM_ATTEMPTS} times, in vain: {why}")

    def _spread(
        self, indices: Sequence[int], ask: Callable[[int, Server], list[Completion]], num_at_once: int
    ) -> tuple[dict[str, dict[int, list[Completion]]], dict[str, Unreachable]]:
        """Ask for prompts, the servers in turn, nothing more of one that is lost: what each drew, what lost them."""
        drawn: dict[str, dict[int, list[Completion]]] = {server.url: {} for server in self.servers}
        losses: dict[str, Unreachable] = {}

        def attempt(place: int) -> None:
            server = self.servers[place % len(self.servers)]
            if server.url in losses:
                return
            try:
                drawn[server.url][indices[place]] = ask(indices[place], server)
            except Unreachable as error:
                losses[server.url] = error

        with ThreadPoolExecutor(num_at_once) as pool:
            try:
                list(pool.map(attempt, range(len(indices))))
            except BaseException:
                self.close()  # else one would wait for all that is under way
                raise
        return drawn, losses

    def _make_current(self) -> None:
        """Wait for every server, and send the weights again to those that were started anew meanwhile."""
        stale = [server for server in self.servers if not self._is_current(server)]
        for url, answer in self._deliver(stale).items():
            log.warning("the vLLM server %s had lost its weights; they were sent again", url)
            weights.prove(url, answer, self.probe, None, 0.0, self.settings.arrival_tolerance)

    def _is_current(self, server: Server) -> bool:
        server.wait(self.settings.timeout_seconds)
        if self.shipment is None:
            return True
        try:
            held = client.call(server.url, "/weight_info", timeout_seconds=self.settings.timeout_seconds)
        except Unreachable:
            return False
        return held["weight_version"] == self.shipment.version

    def _deliver(self, receivers: Sequence[Server]) -> dict[str, list[float]]:
        """Send the shipment, however often a server is lost over it. The answers to the probe, by URL."""
        answers: dict[str, list[float]] = {}
        left, losses = list(receivers), []
        for _ in range(NUM_ATTEMPTS):
            if not left:
                break
            for server in left:
                server.wait(self.settings.timeout_seconds)
            with ThreadPoolExecutor(len(left)) as pool:
                outcomes = list(zip(left, pool.map(self._send, left), strict=True))
            losses = [(server, error) for server, error in outcomes if isinstance(error, Unreachable)]
            left = [server for server, _ in losses]
            answers |= {server.url: answer for server, answer in outcomes if server not in left}
        if left:
            raise ServerError(f"weights were sent {NUM_ATTEMPTS} times, in vain: {losses[0][1]}")
        return answers

    def _send(self, server: Server) -> list[float] | Unreachable:
        seconds = self.settings.timeout_seconds
        try:
            weights.send(server.url, self.facts[server.url], self.shipment, timeout_seconds=seconds)
            answer = client.probe(server.url, self._model(server), self.probe.tokens, timeout_seconds=seconds)
            return answer[-len(self.probe.logps) :]
        except Unreachable as error:
            return error

    def _model(self, server: Server) -> str:
        facts = self.facts[server.url]
        return facts.model if self.shipment is None else self.shipment.model(facts)


def open_engine(
    settings: VLLMSettings,
    *,
    model: str | Path | Callable[[Path], None],
    sampling: SamplingSettings,
    lora_rank: int | None,
    log_dir: Path,
) -> Engine:
    """An engine whose servers are up.

    Args:
        settings: Which servers, and how.
        model: The weights to start with, the policy's or those under its adapter: their folder, or what writes them
            into one, which stays as long as the engine does.
        sampling: How it will be sampled in training.
        lora_rank: Of the adapter that will be sent; ``None`` where full weights are.
        log_dir: Takes what started servers print.
    """
    mode = completions.logprobs_mode(sampling)
    engine = Engine([], settings)
    try:
        folder = engine.outbox.write(model).folder if callable(model) and settings.urls is None else model
        engine.servers = servers(settings, model=folder, mode=mode, lora_rank=lora_rank, log_dir=log_dir)
        engine.start()
    except BaseException:
        engine.close()
        raise
    return engine
