import pytest
import torch

from alignlab.losses.sft import SupervisedTokens, dft, nll, token_metrics
from alignlab.optim.reduction import RunningMeans, step_loss
from alignlab.types.batch import StepTotals
from alignlab.types.loss import LossOutput
from tests.losses.golden import cases, golden
from tests.losses.reduce import step_mean

# Two sequences: log-probabilities -1, -2, -3 and -4.
LOGPS = torch.tensor([-1.0, -2.0, -3.0, -4.0], dtype=torch.float64)
OWNER = torch.tensor([0, 0, 0, 1])
TOTALS = StepTotals(supervised_tokens=4, sequences=2, groups=2, tokens=6, rows=2)


def test_token_mean_worked_by_hand():
    """(1 + 2 + 3 + 4) / 4 = 2.5."""
    assert step_mean(nll(SupervisedTokens(LOGPS, OWNER, 2), reduction="token"), tokens=4, sequences=2).item() == 2.5


def test_sequence_mean_worked_by_hand():
    """((1 + 2 + 3) / 3 + 4 / 1) / 2 = 3."""
    assert step_mean(nll(SupervisedTokens(LOGPS, OWNER, 2), reduction="sequence"), tokens=4, sequences=2).item() == 3.0


def test_dft_weighs_by_probability_without_gradient():
    """Loss p·(-log p); its gradient with respect to log p is -p, not -p·(1 + log p)."""
    logps = LOGPS.clone().requires_grad_()
    output = dft(SupervisedTokens(logps, OWNER, 2), reduction="token")
    output.sum.backward()
    torch.testing.assert_close(output.sum, (LOGPS.exp() * -LOGPS).sum())
    torch.testing.assert_close(logps.grad, -LOGPS.exp())


@pytest.mark.parametrize("loss", [nll, dft])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_gradients(loss, reduction):
    logps = LOGPS.clone().requires_grad_()
    if loss is nll:
        assert torch.autograd.gradcheck(lambda x: loss(SupervisedTokens(x, OWNER, 2), reduction=reduction).sum, logps)
    loss(SupervisedTokens(logps, OWNER, 2), reduction=reduction).sum.backward()
    assert (logps.grad < 0).all(), "a likelier token must lower the loss"


def test_metrics_worked_by_hand():
    running = RunningMeans()
    running.add(LossOutput([], token_metrics(LOGPS, torch.tensor([True, False, True, True]))))
    means = running.means()
    assert means["nll"].item() == 2.5
    assert means["token_accuracy"].item() == 0.75
    assert running.means() == {}


def test_fillers_add_neither_sum_nor_weight():
    output = LossOutput([nll(SupervisedTokens(LOGPS, OWNER, 2), reduction="token")], token_metrics(LOGPS, LOGPS < 0))
    assert step_loss(output.terms, TOTALS, counted=0).item() == 0
    running = RunningMeans()
    running.add(output, counted=0)
    running.close_step(TOTALS)
    assert running.means() == {"loss": 0.0}


@pytest.mark.parametrize("cut", [[4], [1, 3], [1, 1, 1, 1]])
def test_the_reducer_does_not_see_how_a_step_is_cut(cut):
    logps = LOGPS.clone().requires_grad_()
    for part, sequence_ids in zip(logps.split(cut), OWNER.split(cut), strict=True):
        step_loss([nll(SupervisedTokens(part, sequence_ids, 2), reduction="token")], TOTALS, counted=1).backward()
    torch.testing.assert_close(logps.grad, torch.full_like(LOGPS, -0.25))


LOSSES = {"nll": nll, "dft": dft}
REDUCTION = {"reduction": "token"}


@pytest.mark.parametrize("case", cases("sft_real"), ids=lambda case: case["id"])
def test_golden_values(case):
    """The peer's fused head keeps float32 statistics, so its values agree to about 5e-6 only."""
    labels = torch.tensor(golden()["inputs"][case["inputs"]]["labels"])[:, 1:]
    logps = torch.tensor(case["expected"]["per_token_logps"], dtype=torch.float64)[labels != -100]
    sequence_ids = torch.nonzero(labels != -100)[:, 0]
    term = LOSSES[case["config"]["loss_type"]](SupervisedTokens(logps, sequence_ids, len(labels)), **REDUCTION)
    loss = step_mean(term, tokens=case["config"]["num_items_in_batch"] or len(logps))
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=case["tol"])
