"""Compiled decoder blocks compute the same, and micro-batches of other lengths compile nothing again."""

from functools import partial

import pytest
import torch

from alignlab.data.batching.collate import collate
from alignlab.errors import InputError
from alignlab.models.compiled import compile_blocks, copied, is_compiled, uncompiled
from alignlab.models.scoring import token_scores
from tests.models.test_scoring import gradients

# The compiler looks at the gradient of every tensor, and calls what its own libraries have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")


@pytest.fixture
def batches(rows):
    return [collate(rows[:count], packing=True) for count in range(2, len(rows) + 1)]


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_the_same_with_any_lengths_after_one_compilation(tiny_model, batches, fresh):
    from torch._dynamo.utils import counters

    plain, compiled = tiny_model("qwen2"), tiny_model("qwen2")
    compile_blocks(compiled)
    counters.clear()
    for number, batch in enumerate(batches):
        expected, gradient = gradients(plain, batch)
        found, other = gradients(compiled, batch)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (other - gradient).norm() < 1e-5 * gradient.norm()
        if number == 0:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs > 0 and len(batches) > 2


def note(kept, tensor):
    kept[-1] += tensor.nbytes
    return tensor


def test_recomputed_blocks_are_compiled_and_keep_their_inputs_only(tiny_model, batches, fresh):
    from torch._dynamo.utils import counters

    kept = []
    for compiled in (False, True):
        model = tiny_model("qwen2").train()
        expected, gradient = gradients(model, batches[0])
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if compiled:
            compile_blocks(model)
        counters.clear()
        found, other = gradients(model, batches[0])
        assert bool(counters["stats"]["unique_graphs"]) == compiled
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (other - gradient).norm() < 1e-5 * gradient.norm()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(partial(note, kept), lambda tensor: tensor):
            token_scores(model, batches[0])
    assert kept[1] <= kept[0]


def test_a_copy_is_compiled_as_well(tiny_model):
    model = tiny_model()
    assert not is_compiled(copied(model))
    compile_blocks(model)
    assert is_compiled(model) and is_compiled(copied(model))


def test_nothing_is_compiled_within_uncompiled(tiny_model, batches, fresh):
    from torch._dynamo.utils import counters

    model = tiny_model()
    compile_blocks(model)
    counters.clear()
    with torch.no_grad(), uncompiled(model):
        token_scores(model, batches[0])
    assert not counters["stats"]["unique_graphs"]


def test_an_architecture_that_does_not_name_its_blocks_is_refused():
    with pytest.raises(InputError, match=r"Type model\.compile=false"):
        compile_blocks(torch.nn.Linear(2, 2))
