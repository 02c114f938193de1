import pytest

from alignlab.errors import InputError
from alignlab.rollout.vllm import completions
from alignlab.rollout.vllm.client import Refused, Unreachable, call
from alignlab.rollout.vllm.completions import check_mode, completion_request, logprobs_mode
from tests.rollout.vllm.fake import Fake, serving
from tests.rollout.vllm.policy import sampling


def request(prompt=(3, 4), **changes):
    given = {"num_completions": 4, "settings": sampling(), "seed": 7, "context": 32}
    return completion_request("policy", list(prompt), **{**given, **changes})


def test_a_request_leaves_nothing_to_the_server():
    settings = sampling(temperature=0.7, stop_tokens=[1, 9], stop_strings=["</a>"], max_completion_tokens=10)
    body = request(settings=settings)
    assert (body["prompt"], body["n"], body["seed"], body["max_tokens"]) == ([3, 4], 4, 7, 10)
    assert (body["stop_token_ids"], body["ignore_eos"], body["stop"]) == ([1, 9], True, ["</a>"])
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert body[name] == getattr(settings, name)


@pytest.mark.parametrize(("length", "room"), [(2, 30), (31, 1)])
def test_completions_end_where_the_context_does(length, room):
    assert request([3] * length, settings=sampling(max_completion_tokens=99))["max_tokens"] == room


@pytest.mark.parametrize("length", [0, 32])
def test_prompts_that_leave_no_room(length):
    with pytest.raises(InputError, match=f"prompt of {length} tokens"):
        request([3] * length)


def test_greedy_completions_are_asked_for_once():
    body = request(settings=sampling(temperature=0.0))
    assert body["n"] == 1
    with serving(Fake([[-1.0] * 5] * 5)) as url:
        found = completions.complete(url, body, num_completions=4, timeout_seconds=5)
    assert len(found) == 4
    assert found == [found[0]] * 4


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, "processed_logprobs"),
        ({"temperature": 0.7}, "processed_logprobs"),
        ({"top_p": 0.9}, "raw_logprobs"),
        ({"temperature": 0.0, "repetition_penalty": 1.1}, "raw_logprobs"),
    ],
)
def test_the_mode_that_reports_the_whole_distribution_at_the_temperature(changes, mode):
    assert logprobs_mode(sampling(**changes)) == mode
    check_mode("url", mode, sampling(**changes))


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "repetition_penalty"])
def test_temperature_with_truncation_is_refused(name):
    with pytest.raises(InputError, match="rollout=hf"):
        logprobs_mode(sampling(temperature=0.7, **{name: 0.5 if name != "top_k" else 5}))


@pytest.mark.parametrize("mode", ["processed_logprobs", "raw_logits"])
def test_a_server_of_another_mode_is_refused(mode):
    with pytest.raises(InputError, match="--logprobs-mode raw_logprobs"):
        check_mode("http://there", mode, sampling(top_k=5))


def test_completions_come_in_order_and_must_be_whole():
    fake = Fake([[-1.0] * 5] * 5)
    with serving(fake) as url:
        found = completions.complete(url, request(), num_completions=4, timeout_seconds=5)
        assert [one.tokens for one in found] == [fake.choice(request(), fake.table, i)["token_ids"] for i in range(4)]
        assert all(one.finished == (one.tokens[-1] == 1) and len(one.logps) == len(one.tokens) for one in found)
        fake.choice = lambda body, table, index: {"index": index, "finish_reason": "abort"}
        with pytest.raises(Unreachable, match="aborted"):
            completions.complete(url, request(), num_completions=4, timeout_seconds=5)


def test_what_a_server_says_decides_who_is_at_fault():
    fake = Fake([[-1.0] * 5] * 5)
    fake.dead_paths.add("/weight_info")
    fake.broken = 1
    with serving(fake) as url:
        with pytest.raises(Refused, match="answered 404"):
            call(url, "/weight_info", timeout_seconds=5)
        with pytest.raises(Unreachable, match=r"answered 500: .*the engine is dead"):
            call(url, "/v1/completions", {}, timeout_seconds=5)
    with pytest.raises(Unreachable, match="did not answer"):
        call(url, "/health", timeout_seconds=5)
