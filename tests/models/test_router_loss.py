"""A loss that balances experts is asked for by the model's config: it is not dropped silently."""

import pytest
from transformers import MixtralConfig

from alignlab.assemble import refuse_router_loss
from alignlab.errors import InputError
from tests.commands import QUIET, alignlab

MIXTRAL = [
    *("model=scratch", "model.config.model_type=mixtral", "+model.config.num_local_experts=4"),
    *("model.config.tie_word_embeddings=false", "+model.config.output_router_logits=true"),
]


def test_a_router_loss_is_refused_before_training(tmp_path, capsys):
    words = [*MIXTRAL, "+model.config.router_aux_loss_coef=0.01", *QUIET, f"run_dir={tmp_path / 'run'}"]
    assert alignlab("train", *words, "trainer.max_steps=1") == 2
    refusal = capsys.readouterr().err
    assert "router_aux_loss_coef=0.01" in refusal and "output_router_logits=false" in refusal


@pytest.mark.parametrize(("asked", "rate"), [(True, 0.0), (False, 0.02)])
def test_a_router_loss_that_is_not_asked_for_is_no_fault(asked, rate):
    refuse_router_loss(MixtralConfig(output_router_logits=asked, router_aux_loss_coef=rate), None)


def test_of_a_model_with_files_the_remedy_is_in_them():
    with pytest.raises(InputError, match=r"config\.json of some/model") as refused:
        refuse_router_loss(MixtralConfig(output_router_logits=True, router_aux_loss_coef=1.0), "some/model")
    assert "model.config" not in str(refused.value)
