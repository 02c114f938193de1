"""The command line: verbs, help, refusals and exit codes, sweeps, and repeating a run."""

import csv
import json
import math
import re
import subprocess
import sys

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from alignlab import run
from alignlab.cli.composition.compose import ROOT
from alignlab.cli.composition.options import losses_of
from alignlab.cli.main import VERBS, main
from alignlab.cli.sweep import sweep
from alignlab.cli.sweep.job import Job
from alignlab.cli.sweep.sweep import write_table
from alignlab.config.resolve import as_yaml
from alignlab.config.target import locate
from alignlab.errors import InputError
from alignlab.run_folder.folder import read_status
from alignlab.system.disk import write_text
from tests import searching


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Run in an empty folder, with training replaced by a note of what it was asked to do."""
    made = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "fit", lambda config, command: made.append(config))
    monkeypatch.setattr(sweep, "start", lambda config, *_: made.append(config) or Ended(0))
    return made


class Ended(subprocess.CompletedProcess):
    """A process of a sweep's job that is over."""

    def __init__(self, code):
        super().__init__([], code)

    def poll(self):
        return self.returncode


def test_train_composes_and_runs_one_job_and_leaves_nothing_behind(jobs, tmp_path):
    assert main(["train", "optimizer.lr=0.5"]) == 0
    assert [config["optimizer"]["lr"] for config in jobs] == [0.5]
    assert list(tmp_path.iterdir()) == []


def test_the_run_gets_the_command_as_it_was_typed(jobs, monkeypatch):
    commands = []
    monkeypatch.setattr(run, "fit", lambda config, command: commands.append(command))
    assert main(["train", "optimizer.lr=0.5", "model.path=pocket", "tags=[a b]"]) == 0
    assert commands == ["alignlab train optimizer.lr=0.5 model.path=pocket 'tags=[a b]'"]


def test_a_refusal_is_one_paragraph_and_exit_code_2(jobs, capsys):
    assert main(["train", "optimizer.lrr=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and jobs == []
    assert captured.err.count("\n") == 1 and "'optimizer.lr'" in captured.err and "Traceback" not in captured.err


def test_a_refusal_by_the_run_itself_is_printed_alike(jobs, monkeypatch, capsys):
    def fit(config, command):
        raise InputError("data.path=x", "there is no such file", "Type data.path=FILE")

    monkeypatch.setattr(run, "fit", fit)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "Refused. data.path=x: there is no such file. Type data.path=FILE.\n"


def test_debug_shows_the_traceback_of_a_refusal(jobs):
    with pytest.raises(InputError):
        main(["train", "debug=true", "optimizer.lrr=1"])


def test_any_other_error_keeps_its_traceback(jobs, monkeypatch):
    def fit(config, command):
        raise RuntimeError("a bug")

    monkeypatch.setattr(run, "fit", fit)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train"])


def test_a_stop_passes_its_exit_code(jobs, monkeypatch):
    def fit(config, command):
        raise SystemExit(143)

    monkeypatch.setattr(run, "fit", fit)
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 143


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "'train'"),
        (["train", "--multirunn"], "'--multirun'"),
        (["train", "optimizer"], "Type optimizer= with one of: adafactor, "),
        (["train", "tags=[a"], "cannot be read"),
        (["train", "--config-dir", "nowhere"], "nowhere"),
        (["train", "--cfg", "job", "optimizer.lrr=1"], "'optimizer.lr'"),
        (["train", "seed=1,2"], "multirun"),
        (["train", "--from", "nowhere"], "config.yaml"),
        (["train", "--from"], "config.yaml"),
    ],
)
def test_faults_of_the_command_line_are_refused(jobs, capsys, words, said):
    assert main(words) == 2
    assert said in capsys.readouterr().err and jobs == []


@pytest.mark.parametrize("value", ["a b/(c)", "it's (x)", "$HOME/(x)", 'a"b(', "a\\b(", "`date`("])
def test_advised_quotes_survive_the_shell(jobs, capsys, value):
    """What the refusal says is typed into a shell, and the words that arrive there give the value."""
    assert main(["train", f"run_dir={value}"]) == 2
    advised = capsys.readouterr().err.partition("for Hydra: ")[2].strip().removesuffix(".")
    command = ["bash", "-c", f"printf %s {advised}"]
    assert main(["train", subprocess.run(command, capture_output=True, text=True, check=True).stdout]) == 0
    assert jobs[0]["run_dir"] == value


def test_slurm_is_refused_where_there_is_none(jobs, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as caught:
        main(["train", "launcher=slurm", "hydra.sweep.dir=sweeps"])
    assert caught.value.code == 2
    assert "Refused. launcher=slurm: there is no sbatch on this machine" in capsys.readouterr().err and jobs == []


def test_a_sweep_overwrites_nothing(jobs, capsys):
    assert main(["train", "-m", "seed=1,2", "overwrite=true", "run_dir=all"]) == 2
    assert "overwrite=true with --multirun" in capsys.readouterr().err and jobs == []


def test_a_repeated_run_does_not_overwrite(jobs, tmp_path):
    assert main(["train", "overwrite=true", "run_dir=mine"]) == 0
    (tmp_path / "config.yaml").write_text(as_yaml(jobs[0]))
    assert main(["train", "--from", str(tmp_path)]) == 0
    assert [job["overwrite"] for job in jobs] == [True, False]


def test_a_sweep_runs_every_combination_and_goes_on_after_a_refused_job(jobs, capsys):
    assert main(["train", "-m", "optimizer.lr=0.1,-1,0.2", "run_dir=mine"]) == 2
    assert [(config["optimizer"]["lr"], config["run_dir"][:7]) for config in jobs] == [
        (0.1, "mine/0-"),
        (0.2, "mine/2-"),
    ]
    assert "optimizer.lr=-1" in capsys.readouterr().err


def test_a_sweep_goes_on_after_a_failed_job_and_its_table_says_what_became_of_each(jobs, monkeypatch, tmp_path):
    codes = iter([0, 1, 143])
    monkeypatch.setattr(sweep, "start", lambda config, *_: Ended(next(codes)))
    assert main(["train", "-m", "seed=1,2,3,-1", "launcher.num_jobs=2", "run_dir=all"]) == 1
    rows = list(csv.DictReader((tmp_path / "all" / "sweep.csv").read_text().splitlines()))
    found = [(row["job"], row["overrides"], row["status"], row["exit_code"]) for row in rows]
    assert found == [
        ("0", "seed=1", "done", "0"),
        ("1", "seed=2", "failed", "1"),
        ("2", "seed=3", "stopped", "143"),
        ("3", "seed=-1", "refused", "2"),
    ]


def test_no_more_jobs_run_at_a_time_than_may(jobs, monkeypatch):
    running = set()

    class Running(Ended):
        def poll(self):
            self.polls = getattr(self, "polls", 0) + 1
            assert len(running) <= 2
            if self.polls > 2:
                running.discard(self)
                return 0

        __hash__ = object.__hash__

    def start(config, job, slot, num_jobs):
        process = Running(0)
        running.add(process)
        return process

    monkeypatch.setattr(sweep, "start", start)
    assert main(["train", "-m", "seed=range(5)", "launcher.num_jobs=2"]) == 0 and not running


def test_jobs_at_a_time_share_the_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [sweep._share(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4,5", "6,7"]
    assert [sweep._share(slot, 8)["CUDA_VISIBLE_DEVICES"] for slot in (0, 3, 4)] == ["4", "7", "4"]


def test_flags_may_stand_anywhere(jobs):
    assert main(["train", "seed=1,2", "-m", "optimizer.lr=0.1"]) == 0
    assert [config["seed"] for config in jobs] == [1, 2]


def test_several_machines_need_ranks(monkeypatch, capsys):
    assert main(["train", "trainer.num_nodes=2", "trainer.devices=2", "strategy=ddp"]) == 2
    said = capsys.readouterr().err
    assert "torchrun --nnodes 2 --nproc-per-node 2" in said and "srun --nodes 2 --ntasks-per-node 2" in said


def test_a_command_that_is_no_sweep_is_composed_once(jobs, monkeypatch):
    composed = []
    compose = ConfigLoaderImpl.load_configuration
    counted = lambda *args, **kwargs: composed.append(1) or compose(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    main(["train", "seed=2"])
    assert len(composed) == 1


def test_a_named_sweep_needs_no_flag(jobs):
    assert main(["train", "sweeps=learning_rate"]) == 0
    assert len(jobs) == 6 and {config["run_dir"] for config in jobs} == {None}


def test_from_repeats_a_run_with_changes(jobs, tmp_path):
    main(["train", "peft=lora", "seed=7"])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(as_yaml(jobs[0] | {"run_dir": "old"}))
    assert main(["train", "--from", "old", "optimizer.lr=0.25"]) == 0
    again = jobs[1]
    assert (again["seed"], again["peft"]["r"], again["optimizer"]["lr"], again["run_dir"]) == (7, 16, 0.25, None)
    assert main(["train", "--from=old", "optimizer.lrr=1"]) == 2


CONFIGS = [b"", b"\xff\xfe\x00a", b"[1, 2]", b"a: [", b"5", b"seed: {", b"seed: [1]\n", b"strategy: x\n", b"\x00", None]


@pytest.mark.parametrize("content", CONFIGS)
def test_from_a_run_whose_config_is_damaged_is_refused(jobs, tmp_path, capsys, content):
    config = tmp_path / "run" / "config.yaml"
    config.mkdir(parents=True) if content is None else config.parent.mkdir()
    if content is not None:
        config.write_bytes(content)
    assert main(["train", "--from", str(tmp_path / "run")]) == 2
    assert "Refused" in capsys.readouterr().err


def test_from_a_name_that_cannot_be_is_refused(jobs, capsys):
    assert main(["train", "--from", "x" * 300]) == 2
    assert "File name too long" in capsys.readouterr().err


DAMAGED = ["", "[]", "5", "{", '{"metrics": []}', '{"metrics": {"val/loss": 1}}', "[" * 100_000, None]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: str(text)[:20])
def test_a_sweep_passes_over_damaged_summaries_and_notes(tmp_path, text, capsys):
    for file in (tmp_path / "sft-abc" / "summary.json", tmp_path / ".jobs" / "abc" / "job.json"):
        file.parent.mkdir(parents=True)
        file.mkdir() if text is None else file.write_text(text)
    job = Job(0, "a=1", tmp_path, "abc", tmp_path / "place", None)
    assert job.newest_run("done") is None and read_status(tmp_path / "sft-abc") is None
    assert job.note(1)["status"] == "failed"
    write_table(tmp_path)
    assert "left out" in capsys.readouterr().out


def test_an_option_cannot_be_chosen_for_a_repeated_run(jobs, tmp_path, capsys):
    main(["train"])
    (tmp_path / "config.yaml").write_text(as_yaml(jobs[0]))
    assert main(["train", "--from", str(tmp_path), "optimizer=sgd"]) == 2
    assert "change single keys: optimizer.NAME=VALUE" in capsys.readouterr().err


def test_help_is_short_and_lists_groups_and_keys(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 80
    for word in (
        "  peft                dora",
        "  sweeps              group_against_pairs, learning_rate",
        "optimizer.lr",
        "data.path",
        "--from",
        "--cfg job",
    ):
        assert word in text
    assert "tests" not in text


def test_help_lists_the_verbs(capsys):
    assert main([]) == 0
    assert "alignlab train" in capsys.readouterr().out


def test_cfg_prints_the_config(jobs, capsys):
    assert main(["train", "--cfg", "job", "peft=lora"]) == 0
    assert "lora_alpha: 32" in capsys.readouterr().out and jobs == []


def test_the_door_at_the_root_exits_with_the_code(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "model=pockt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("Refused. model=pockt: ") and done.stdout == ""


def test_help_names_the_losses_of_each_method():
    page = (ROOT / "conf" / "hydra" / "help" / "train.yaml").read_text(encoding="utf-8")
    table = page.partition("Losses, as")[2].partition("Common keys")[0]
    rows = re.findall(r"^    (\S.*?)   +(\S.*(?:\n {20,}\S.*)*)", table, re.MULTILINE)
    told = {method: set(re.split(r",\s+", losses)) for methods, losses in rows for method in methods.split(", ")}
    files = {file.stem: OmegaConf.load(file)._target_ for file in (ROOT / "conf" / "method").glob("*.yaml")}
    assert told == {name: found for name, target in files.items() if (found := set(losses_of(locate(target))))}


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_terminal_and_names_nothing_internal(verb, capsys):
    assert main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].endswith(".")
    assert not any("/part" in line or "pair/" in line or "$" in line for line in lines)


def test_help_is_of_the_verb(capsys):
    assert main(["preview", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Show the rows") and "preview.html" in shown


@pytest.fixture
def search(jobs, monkeypatch):
    """Runs a sweep by a sweeper that reads the values of its jobs; Hydra accepts only those of one package."""

    def run(direction, *words):
        sweeper = ["hydra.sweeper._target_=hydra_plugins.searching.Searching", f"+hydra.sweeper.direction={direction}"]
        return main(["train", "-m", *sweeper, "run_dir=all", "seed=1,2,3", *words])

    monkeypatch.setitem(sys.modules, "hydra_plugins.searching", searching)
    known = Plugins.instance().class_name_to_class
    monkeypatch.setitem(known, "hydra_plugins.searching.Searching", searching.Searching)
    return run


def finishing(monkeypatch, results):
    """Jobs end one after the other, each polled twice, with a summary or with a failure."""
    results = iter(results)

    class Job(Ended):
        def poll(self):
            self.polls = getattr(self, "polls", 0) + 1
            return self.returncode if self.polls > 2 else None

        def terminate(self):
            self.polls = 2

    def start(config, job, slot, num_jobs):
        result = next(results)
        write_text(job.records / "config.yaml", "")
        if result is not None:
            summary = {"status": "done", "steps": 1, "wall_seconds": 1.0, **result}
            write_text(job.run_dir / "summary.json", json.dumps(summary))
        return Job(0 if result is not None else 1)

    monkeypatch.setattr(sweep, "start", start)


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_a_search_gets_the_values_of_its_metric_also_of_jobs_that_run_together(search, monkeypatch, num_jobs):
    """The best value where the run kept its best weights by it, the last one else; the worst one of a failure."""
    best = {"metric": "val/exact_match", "mode": "max", "step": 2, "value": 0.75}
    last = {"val/exact_match": 0.5, "val/loss": 0.1}
    finishing(monkeypatch, [{"metrics": last, "best": best}, {"metrics": last, "best": None}, None])
    code = search("maximize", "objective=val/exact_match", f"launcher.num_jobs={num_jobs}")
    assert (code, searching.Searching.values) == (1, [0.75, 0.5, -math.inf])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["minimize", "objective=val/exact_match"], 2, "Type hydra.sweeper.direction=maximize"),
        (["maximize", "objective=val/exact"], 2, "Did you mean 'val/exact_match'"),
        (["maximize", "objective=val/rewards/margins"], 1, "It logged val/loss"),
        (["maximize", "objective=val/rewards/margins", "launcher.num_jobs=3"], 1, "It logged val/loss"),
    ],
)
def test_a_search_for_what_is_not_logged_or_for_the_worst_is_refused(search, monkeypatch, capsys, words, code, told):
    finishing(monkeypatch, [{"metrics": {"val/loss": 0.1}, "best": None}] * 3)
    assert search(*words) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["chat", "export"])
def test_a_model_that_is_not_there_is_refused_by_the_key_of_the_verb(verb, tmp_path, capsys):
    assert main([verb, str(tmp_path / "gone"), *([f"to={tmp_path / 'out'}"] if verb == "export" else [])]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Refused. from={tmp_path / 'gone'}: ") and "model.path" not in said


def test_the_list_of_verbs_fits_a_terminal(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("  alignlab")} == set(VERBS)
    assert max(map(len, lines)) <= 80
