"""The engine over servers that speak as vLLM does; their model is a table of log-probabilities."""

import itertools
import os
import threading
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import save_file

from alignlab.errors import InputError
from alignlab.rollout.vllm.client import Refused
from alignlab.rollout.vllm.engine import Engine
from alignlab.rollout.vllm.server import Server, ServerError
from alignlab.rollout.vllm.weights import ArrivalError, Probe
from tests.rollout.vllm.fake import Fake, serving
from tests.rollout.vllm.policy import sampling, seeds_of, server_settings

PROMPTS = [[place, 4] for place in range(5)]
PROBE = [0, 3, 2, 4, 1]


class Table(torch.nn.Module):
    """What is trained: P(next token | last token)."""

    def __init__(self, seed):
        super().__init__()
        self.table = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))

    def write(self, folder, adapter=False):
        save_file({"table": self.table}, folder / ("adapter_model.safetensors" if adapter else "model.safetensors"))
        if adapter:
            (folder / "adapter_config.json").write_text("{}")

    def write_adapter(self, folder):
        self.write(folder, adapter=True)

    def logps(self, prompt, tokens):
        table, path = self.table.log_softmax(-1), [prompt[-1], *tokens]
        return [table[a][b].item() for a, b in itertools.pairwise(path)]

    def probe(self):
        return Probe(PROBE, self.logps(PROBE[:1], PROBE[1:]))


@pytest.fixture
def fakes():
    return [Fake(Table(0).table.log_softmax(-1).tolist()) for _ in range(2)]


@pytest.fixture
def engine(fakes, tmp_path):
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(fake)) for fake in fakes]
        settings = server_settings(urls=urls, weights_dir=str(tmp_path), timeout_seconds=2.0)
        engine = Engine([Server(url) for url in urls], settings)
        engine.start()
        yield engine
        engine.close()


def draw(engine, seed=0, **changes):
    settings, seeds = sampling(max_completion_tokens=6, **changes), seeds_of(seed, PROMPTS)
    return engine.sample(PROMPTS, num_completions=3, settings=settings, seeds=seeds)


def assert_drawn_from(policy, groups):
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert len(group) == 3
        for one in group:
            assert one.logps == pytest.approx(policy.logps(prompt, one.tokens), abs=1e-6)


def test_prompts_are_shared_out_and_come_back_in_order(engine, fakes):
    groups = draw(engine)
    assert_drawn_from(Table(0), groups)
    shares = [[body["prompt"] for path, body in fake.asked if path == "/v1/completions"] for fake in fakes]
    assert sorted(shares[0] + shares[1]) == PROMPTS
    assert min(map(len, shares)) == 2


def test_samples_do_not_depend_on_the_number_of_servers(engine):
    together = draw(engine, seed=5)
    engine.servers.pop()
    assert draw(engine, seed=5) == together
    assert draw(engine, seed=6) != together


@pytest.mark.parametrize("kind", ["write", "write_adapter"])
def test_updates_reach_every_server(engine, fakes, kind):
    for seed in (1, 2, 3):
        policy = Table(seed)
        assert engine.update(getattr(policy, kind), policy.probe()) < 1e-5
        assert_drawn_from(policy, draw(engine))
    for fake in fakes:
        assert fake.paths().count("/reset_prefix_cache") == 3
        assert len(fake.adapters) == (kind == "write_adapter")
    assert len(list((engine.update_folder.parent / engine.update_folder.name).iterdir())) == 1, (
        "old updates are removed"
    )


def test_a_tied_head_is_packed_anew(engine, fakes):
    engine.update(Table(1).write, Table(1).probe())
    methods = [body["method"] for path, body in fakes[0].asked if path == "/collective_rpc"]
    assert methods == ["reload_weights", "pack_tied_head"]


def test_weights_that_get_lost_stop_the_run(engine, fakes):
    fakes[1].deaf = True
    with pytest.raises(ArrivalError, match=r"does not use the weights .* rollout\.arrival_tolerance=0\.001"):
        engine.update(Table(1).write, Table(1).probe())


def test_updates_below_the_tolerance_are_told_from_old_weights(engine, fakes):
    """The probe moves by about 1e-4 nats per token, a tenth of what is tolerated."""
    policy = Table(1)
    engine.update(policy.write, policy.probe())
    policy.table[:, 0] += 3e-4
    engine.update(policy.write, policy.probe())
    policy.table[:, 0] += 3e-4
    fakes[0].deaf = True
    with pytest.raises(ArrivalError, match="still uses the weights from before"):
        engine.update(policy.write, policy.probe())


def test_a_server_that_broke_gets_its_weights_and_prompts_again(engine, fakes):
    policy = Table(1)
    engine.update(policy.write, policy.probe())
    expected = draw(engine)
    fakes[0].broken = 1
    assert draw(engine) == expected
    assert_drawn_from(policy, expected)


def test_a_server_that_was_started_anew_unnoticed_gets_its_weights_again(engine, fakes):
    policy = Table(1)
    engine.update(policy.write_adapter, policy.probe())
    fakes[1].restart()
    assert_drawn_from(policy, draw(engine))


def test_what_a_new_server_drew_before_it_had_the_weights_is_thrown_away(engine, fakes):
    """It is replaced between two requests, so that none of them fails."""
    policy, complete = Table(1), fakes[1].complete
    engine.update(policy.write, policy.probe())

    def replaced(body):
        fakes[1].restart()
        del fakes[1].complete
        return complete(body)

    fakes[1].complete = replaced
    assert_drawn_from(policy, draw(engine))


def test_a_server_that_comes_back_in_time(fakes, tmp_path, free_port):
    settings = server_settings(weights_dir=str(tmp_path), timeout_seconds=20.0)
    engine, policy = Engine([Server(f"http://127.0.0.1:{free_port}")], settings), Table(1)
    with serving(fakes[0], free_port):
        engine.start()
        engine.update(policy.write, policy.probe())
    fakes[0].restart()
    leave = threading.Event()

    def return_later():
        leave.wait(0.3)
        with serving(fakes[0], free_port):
            leave.wait(20)

    thread = threading.Thread(target=return_later)
    thread.start()
    assert_drawn_from(policy, draw(engine))
    leave.set()
    thread.join()
    engine.close()


def test_a_server_that_stays_away(fakes, tmp_path):
    engine = Engine([], server_settings(weights_dir=str(tmp_path), timeout_seconds=0.2))
    with serving(fakes[0]) as url:
        engine.servers = [Server(url)]
        engine.start()
    with pytest.raises(ServerError, match=f"{url} has not answered for 0.2 s"):
        draw(engine)


def test_a_server_that_always_breaks(engine, fakes):
    fakes[0].broken = 1000
    with pytest.raises(ServerError, match=r"sampling failed 3 times: .*the engine is dead"):
        draw(engine)


def test_what_a_server_refuses_is_not_asked_again(engine, fakes):
    fakes[0].dead_paths.add("/v1/completions")
    with pytest.raises(Refused, match="no such path"):
        draw(engine)


def test_a_server_without_development_mode(fakes, tmp_path):
    fakes[0].dead_paths.add("/server_info")
    with serving(fakes[0]) as url:
        engine = Engine([Server(url)], server_settings(weights_dir=str(tmp_path)))
        with pytest.raises(InputError, match="VLLM_SERVER_DEV_MODE=1"):
            engine.start()


def test_no_room_for_weights(engine):
    def write(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"rollout\.weights_dir=.*No space left"):
        engine.update(write, Table(1).probe())


def test_nothing_is_left_in_shared_memory(engine, tmp_path):
    engine.update(Table(1).write, Table(1).probe())
    dead = tmp_path / engine.update_folder.name.replace(str(os.getpid()), "4194305")
    dead.mkdir()
    engine.close()
    assert list(tmp_path.iterdir()) == [dead]
    Engine([], engine.settings).close()
    assert not list(tmp_path.iterdir()), "what a killed process has left is removed too"
