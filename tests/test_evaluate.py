"""``alignlab evaluate``, from the command line to the files, against slow loops over single sequences."""

import json
import math
import re
import shutil

import pytest
import torch

from alignlab.cli.evaluate import run_of
from alignlab.evaluation.results import COMPLETIONS, RESULTS
from alignlab.models.opened import open_trained
from tests.commands import alignlab, summary
from tests.rewards.judge_server import Response, served

FEW = ["trainer.max_steps=2", "data.source.num_train=16", "data.source.num_validation=6", "data.global_batch_size=8"]
OPENING = {"dtype": "auto", "device": "cpu", "trust_remote_code": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose validation is known, with a W&B run of its own."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert alignlab("train", *FEW, f"run_dir={folder}") == 0
    return folder


def evaluated(tmp_path, *words):
    """The results of an evaluation, by name."""
    folder = tmp_path / "results"
    assert alignlab("evaluate", *words, f"to={folder}") == 0
    return json.loads((folder / RESULTS).read_text())["results"]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIRS = [
    {"prompt": "Calculate 3 + 4.", "chosen": "It is 7, of course.", "rejected": "8"},
    {"prompt": "Calculate 2 + 2.", "chosen": "4", "rejected": "5, or perhaps 6"},
    {"prompt": "How much is 7 - 5?", "chosen": "Two: <answer>2</answer>", "rejected": "3"},
]


# --- loss -------------------------------------------------------------------------------------------------------------


def test_a_run_is_measured_on_the_rows_that_it_held_out(run, capsys):
    """By default: the same loss and exact match as its last validation, in a folder of the run."""
    assert alignlab("evaluate", run) == 0
    found = json.loads((run / "evaluation" / RESULTS).read_text())["results"]
    trained = summary(run)["metrics"]
    for name in ("loss", "perplexity", "token_accuracy", "exact_match"):
        assert found[name]["value"] == pytest.approx(trained[f"val/{name}"], rel=1e-5), name
        assert found[name]["low"] < found[name]["value"] < found[name]["high"] and found[name]["num_rows"] == 6
    shown = capsys.readouterr().out
    assert "exact_match" in shown and "and in the summary of its W&B run" in shown


def test_loss_and_bits_per_byte_equal_those_of_a_loop(tmp_path):
    """Each row by itself, in float64, with the template's own text."""
    found = evaluated(tmp_path, "pocket", "data=jsonl", f"data.path={write(tmp_path / 'rows.jsonl', *PAIRS)}")
    model, tokenizer = open_trained("pocket", **OPENING)
    model = model.double()
    nats, num_tokens, num_bytes = [], [], []
    for row in PAIRS:
        asked = [{"role": "user", "content": row["prompt"]}]
        options = {"return_dict": True, "return_tensors": "pt"}
        context = tokenizer.apply_chat_template(asked, add_generation_prompt=True, **options)["input_ids"]
        answered = [*asked, {"role": "assistant", "content": row["chosen"]}]
        whole = tokenizer.apply_chat_template(answered, **options)["input_ids"]
        end = (whole[0] == tokenizer.eos_token_id).nonzero()[-1].item() + 1  # a newline after it is not the answer
        logps = model(input_ids=whole).logits[0].log_softmax(-1)[:-1].gather(-1, whole[0, 1:, None])[:, 0]
        nats.append(-logps[context.shape[1] - 1 : end - 1].sum().item())
        num_tokens.append(end - context.shape[1])
        num_bytes.append(len(row["chosen"].encode()))
    assert found["loss"]["value"] == pytest.approx(sum(nats) / sum(num_tokens), rel=1e-5)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(sum(nats) / sum(num_tokens)), rel=1e-4)
    assert found["bits_per_byte"]["value"] == pytest.approx(sum(nats) / math.log(2) / sum(num_bytes), rel=1e-5)


def test_texts_are_measured_as_texts(tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("one two three four\n\nfive six seven\n")
    found = evaluated(tmp_path, "pocket", "data=jsonl", f"data.path={text}")
    assert found.keys() == {"loss", "perplexity", "token_accuracy", "bits_per_byte"}


# --- which rows -------------------------------------------------------------------------------------------------------


def test_a_path_replaces_the_rows_of_the_run(run, tmp_path):
    """All rows of the file are measured, with the other settings of the run's data."""
    rows = write(tmp_path / "sums.jsonl", *({"prompt": f"Calculate {n} + 1.", "answer": str(n + 1)} for n in range(5)))
    assert evaluated(tmp_path, run, f"data.path={rows}")["exact_match"]["num_rows"] == 5
    assert evaluated(tmp_path, run / "model", f"data.path={rows}", "num_rows=2")["exact_match"]["num_rows"] == 2


def test_named_sets_are_measured_one_by_one(tmp_path):
    easy = write(tmp_path / "easy.jsonl", {"prompt": "Calculate 1 + 1.", "answer": "2"})
    hard = write(tmp_path / "hard.jsonl", *PAIRS)
    sets = f"data.validation_path={{easy: {easy}, hard: {hard}}}"
    found = evaluated(tmp_path, "pocket", "data=jsonl", sets)
    assert {name.split("/")[0] for name in found} == {"easy", "hard"}
    assert (
        found["hard/loss"]["num_rows"] == 3 and "easy/loss" not in found and found["easy/exact_match"]["num_rows"] == 1
    )


def test_a_name_is_no_run_where_a_run_is_the_working_folder(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    assert alignlab("evaluate", "pocket") == 2
    assert "no run made it" in capsys.readouterr().err
    assert run_of("pocket") is None and run_of("me/model") is None
    assert run_of(".") == run_of("model") == run_of("checkpoints/step-00000002") == run


def test_a_run_that_is_not_done_is_not_told_to_its_tracker(run, tmp_path):
    """W&B would show it as finished."""
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    said = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(said | {"status": "failed"}))
    before = sorted(folder.glob("wandb/*"))
    assert alignlab("evaluate", folder, "measures=[loss]") == 0
    assert sorted(folder.glob("wandb/*")) == before


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_have_rewards_and_pass_rates(tmp_path):
    words = ("data=arithmetic", "num_rows=8", "measures=[samples]", "rollout.max_completion_tokens=48")
    several = ("samples.num_completions=4", "samples.k=[1,4]", "method/reward=[exact_answer,length]")
    found = evaluated(tmp_path, "pocket", *words, *several)
    lines = [json.loads(line) for line in (tmp_path / "results" / COMPLETIONS).read_text().splitlines()]
    sampled = [line for line in lines if line["drawn"] == "sampled"]
    greedy = [line for line in lines if line["drawn"] == "greedy"]
    assert len(sampled) == 32 and len(greedy) == 8
    by_prompt = [sampled[start : start + 4] for start in range(0, 32, 4)]
    passed = [[line["passed"] for line in group] for group in by_prompt]
    assert found["mean@4"]["value"] == pytest.approx(sum(map(sum, passed)) / 32)
    assert found["pass@4"]["value"] == sum(map(any, passed)) / 8
    assert found["reward"]["value"] == pytest.approx(sum(line["reward"] for line in sampled) / 32)
    assert found["exact_match"]["value"] == sum(line["right"] for line in greedy) / 8
    assert len({line["completion"] for line in by_prompt[0]}) > 1


def test_wins_are_counted_against_another_model(run, tmp_path):
    """The same model at temperature 0 ties everywhere."""
    words = ("data=arithmetic", "num_rows=6", "measures=[wins]", "method/reward=exact_answer", "rollout.temperature=0")
    assert evaluated(tmp_path, "pocket", "against=pocket", *words)["win_rate"]["value"] == 0.5
    found = evaluated(tmp_path, run, "against=pocket", *words)
    lines = [json.loads(line) for line in (tmp_path / "results" / COMPLETIONS).read_text().splitlines()]
    scores = [[line["reward"] for line in lines if line["drawn"] == side] for side in ("from", "against")]
    wins = [(a > b) + (a == b) / 2 for a, b in zip(*scores, strict=True)]
    assert found["win_rate"]["value"] == pytest.approx(sum(wins) / 6)


LONGER = re.compile(r"<(completion_[12]) (\w+)>\n(.*?)\n</\1 \2>", re.DOTALL)


def longer(message, _):
    """A judge that prefers the longer completion, wherever it stands."""
    first, second = (len(text) for _, _, text in LONGER.findall(message))
    return Response(f'Because. {{"better": {0 if first == second else 1 + (second > first)}}}')


def first_one(*_):
    """A judge that always prefers the first position."""
    return Response('{"better": 1}')


@pytest.mark.parametrize("answer", [longer, first_one])
def test_a_judge_must_prefer_a_completion_in_both_orders(run, tmp_path, answer):
    words = ("data=arithmetic", "num_rows=6", "measures=[wins]", "judge.model=judge", "rollout.temperature=2")
    with served(answer) as server:
        found = evaluated(tmp_path, run, "against=pocket", f"judge.endpoint={server.url}", *words)
    lines = [json.loads(line) for line in (tmp_path / "results" / COMPLETIONS).read_text().splitlines()]
    lengths = [(len(line["from"]), len(line["against"])) for line in lines]
    by_length = [(own > other) - (own < other) for own, other in lengths]
    assert len({*by_length}) > 1 and len(lines) == 6
    assert [line["outcome"] for line in lines] == (by_length if answer is longer else [0] * 6)
    assert found["win_rate"]["value"] == pytest.approx(sum((line["outcome"] + 1) / 2 for line in lines) / 6)


GIVEN = [{"prompt": f"{n}?", "completions": ["1", "2"], "rewards": [0, 1]} for n in range(8)]


def test_a_reward_that_the_data_gives_to_its_own_completions_says_nothing_of_others(tmp_path, capsys):
    """Neither typed nor taken from the run."""
    rows, folder = write(tmp_path / "rows.jsonl", *GIVEN), tmp_path / "run"
    words = ["method=grpo", "rollout=data", "method/reward=given", "data=jsonl", f"data.path={rows}", "logger=none"]
    words += ["data.global_batch_size=2", "trainer.max_steps=1", "data.validation_size=2", f"run_dir={folder}"]
    assert alignlab("train", *words) == 0
    capsys.readouterr()
    for typed, why in ([], "there is no method/reward="), (["method/reward=given"], "says nothing of others"):
        assert alignlab("evaluate", folder, "measures=[samples]", *typed) == 2
        assert why in capsys.readouterr().err


def test_what_rewards_and_the_model_cannot_read_is_refused(tmp_path, capsys):
    words = ("evaluate", "pocket", "data=jsonl", f"to={tmp_path / 'out'}")
    asked = write(tmp_path / "asked.jsonl", {"prompt": "1?", "answer": "1"})
    column = ("method/reward=exact_answer", "method.reward.exact_answer.column=a")
    assert alignlab(*words, f"data.path={asked}", *column) == 2
    assert "it needs a column 'a'" in capsys.readouterr().err
    long = write(tmp_path / "long.jsonl", {"prompt": "1?", "chosen": "1 " * 400, "rejected": "2"})
    assert alignlab(*words, f"data.path={long}", "measures=[loss]") == 2
    assert "the model has 512 positions" in capsys.readouterr().err


# --- reward models ----------------------------------------------------------------------------------------------------


def test_a_reward_model_is_measured_on_pairs(tmp_path):
    """Against its own forward on each whole dialogue."""
    folder = tmp_path / "judge"
    train = ("method=reward_model", "logger=none", *FEW)
    assert alignlab("train", *train, f"run_dir={folder}") == 0
    rows = write(tmp_path / "rows.jsonl", *PAIRS)
    found = evaluated(tmp_path, folder, f"data.path={rows}")
    model, tokenizer = open_trained(str(folder), head="reward", **OPENING)
    margins = []
    for row in PAIRS:
        scores = []
        for answer in (row["chosen"], row["rejected"]):
            dialogue = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
            ids = tokenizer.apply_chat_template(dialogue, return_dict=True, return_tensors="pt")["input_ids"]
            end = (ids[0] == tokenizer.eos_token_id).nonzero()[-1].item() + 1
            with torch.no_grad():
                scores.append(model(input_ids=ids[:, :end]).logits[0, 0].item())
        margins.append(scores[0] - scores[1])
    assert found["margin"]["value"] == pytest.approx(sum(margins) / 3, abs=1e-5)
    assert found["pair_accuracy"]["value"] == sum(margin > 0 for margin in margins) / 3


# --- tasks of the harness ---------------------------------------------------------------------------------------------

SUMS = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["</answer>"], max_gen_toks: 48}}
filter_list:
  - name: number
    filter: [{{function: regex, regex_pattern: '<answer>(\\d+)'}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.slow
def test_tasks_of_the_harness_run_over_local_files(tmp_path):
    numbers = [(98, 87), (9, 8), (2, 3), (20, 13), (7, 7), (31, 5)]
    asked = [{"question": f"Calculate {a} + {b}.", "answer": str(a + b)} for a, b in numbers]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(SUMS.format(file=write(tmp_path / "sums.jsonl", *asked)))
    found = evaluated(tmp_path, "pocket", "tasks.names=[sums]", f"tasks.include_path={tmp_path / 'tasks'}")
    ours = write(tmp_path / "ours.jsonl", *({"prompt": row["question"], "answer": row["answer"]} for row in asked))
    exact = evaluated(tmp_path, "pocket", "data=jsonl", f"data.path={ours}")["exact_match"]
    assert found["sums/exact_match/number"]["value"] == pytest.approx(exact["value"])
    assert found["sums/exact_match/number"]["num_rows"] == 6


@pytest.mark.slow
def test_tasks_run_during_training_and_change_nothing(tmp_path):
    """The last value is that of an evaluation, and the weights are those of a run without tasks."""
    (tmp_path / "tasks").mkdir()
    asked = [{"question": f"Calculate {a} + {b}.", "answer": str(a + b)} for a, b in [(98, 87), (9, 8), (2, 3)]]
    (tmp_path / "tasks" / "sums.yaml").write_text(SUMS.format(file=write(tmp_path / "sums.jsonl", *asked)))
    folder = f"include_path={tmp_path / 'tasks'}"
    tasks = ["callbacks=tasks", "callbacks.tasks.names=[sums]", f"callbacks.tasks.{folder}"]
    for name, words in (("with", tasks), ("without", [])):
        assert alignlab("train", *FEW, "logger=none", "model.dropout=0.1", *words, f"run_dir={tmp_path / name}") == 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]
    found = evaluated(tmp_path, tmp_path / "with", "tasks.names=[sums]", f"tasks.{folder}")
    logged = summary(tmp_path / "with")["metrics"]["val/task/sums/exact_match/number"]
    assert logged == pytest.approx(found["sums/exact_match/number"]["value"])  # float32


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_the_nearest(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert alignlab("evaluate", "pocket", "tasks.names=[gsm8kk]") == 2
    assert "Did you mean 'gsm8k'?" in capsys.readouterr().err


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pocket"], "no run made it, whose data is known. Type data=jsonl data.path=FILE"),
        (["pocket", "data=arithmetic", "measures=[pairs]"], "Type measures=[loss,samples]"),
        (["pocket", "data=arithmetic", "measures=[wins]"], "there is no against=MODEL"),
        (["pocket", "data=arithmetic", "sample.k=[1]"], "Did you mean 'samples.k'?"),
        (["nowhere", "data=arithmetic"], "from=nowhere"),
        (["pocket", "data=arithmetic", "samples.k=[4]"], "samples.num_completions=4"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert alignlab("evaluate", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not any(tmp_path.iterdir())


def test_an_earlier_evaluation_is_replaced_and_nothing_else(tmp_path, capsys):
    words = ("evaluate", "pocket", "data=arithmetic", "num_rows=2")
    out = tmp_path / "out"
    assert alignlab(*words, f"to={out}") == 0
    assert alignlab(*words, "measures=[loss]", f"to={out}") == 0
    assert [path.name for path in out.iterdir()] == [RESULTS]
    for name, text in ((RESULTS, "[1]"), ("notes.txt", "keep")):
        (mine := tmp_path / name.replace(".", "_")).mkdir()
        (mine / name).write_text(text)
        assert alignlab(*words, f"to={mine}") == 2
        assert (mine / name).read_text() == text and f"not of an evaluation: {name}" in capsys.readouterr().err
