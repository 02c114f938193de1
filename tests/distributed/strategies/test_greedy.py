"""The most probable completions under every strategy: those of Transformers on the model that was written."""

import pytest
from tests.distributed.strategies import cells, jobs
from tests.rollout.sampler.test_sampler import generate

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18], [20, 21]]
CELLS = [
    pytest.param(peft, strategy, marks=[] if (peft, strategy) == ("full", "fsdp") else pytest.mark.slow)
    for peft in ("full", "lora", "qlora")
    for strategy in cells.STRATEGIES
    if "nvme" not in strategy
]


@pytest.mark.parametrize(("peft", "strategy"), CELLS)
def test_greedy_equals_generate(peft, strategy, alone, together, tmp_path):
    """Token for token, alone and padded, after training: every rank has gathered all weights as they are by now."""
    ranks = together("sft", peft, strategy, to=str(tmp_path / "model"), prompts=PROMPTS)
    model = jobs.reopen(tmp_path / "model", peft, "sft").eval()
    expected = [generate(model, [prompt])[0] for prompt in PROMPTS]
    assert expected == generate(model, PROMPTS)
    assert len(set(map(tuple, expected))) > 1
    assert [rank["completions"] for rank in ranks] == [expected, expected]
    assert alone("sft", peft, prompts=tuple(map(tuple, PROMPTS)))["completions"] == expected
