"""The pair of processes, the base of the adapters, and what one process comes to."""

import functools
import socket

import pytest
from tests.distributed.strategies import jobs
from tests.distributed.strategies.pair import Pair


@pytest.fixture(scope="session")
def pair():
    """Two ranks that stay for all tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = Pair(port)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The toy policy in a folder."""
    return jobs.write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def alone(base):
    """``alone(method, peft, …)``: the same training in one process, once per session."""
    return functools.cache(lambda method, peft, **options: jobs.train(method, peft, "single", base=base, **options))


@pytest.fixture
def together(pair, base):
    """``together(method, peft, strategy, …)``: what both ranks came to."""
    return lambda *cell, **options: pair.run(jobs.train_rank, *cell, base=base, **options)
