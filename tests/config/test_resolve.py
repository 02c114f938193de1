"""Strings are resolved once, by known resolvers; Hydra's own settings run nothing."""

import pytest
from omegaconf import OmegaConf

from alignlab import run
from alignlab.cli.composition.compose import compose
from alignlab.cli.main import main
from alignlab.config import schema
from alignlab.config.build import build
from alignlab.config.resolve import NO_RUN_DIR, as_yaml, resolved, with_run_dir
from alignlab.errors import InputError

NODE = "{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: made}"


@pytest.mark.parametrize(
    "value",
    [
        "${oc.create:{a: 1}}",
        "${oc.decode:'1'}",
        "${oc.deprecated:seed}",
        "${oc.dict.keys:optimizer}",
        "${oc.dict.values:optimizer}",
        "${${oc.env:KIND}:{a: 1}}",
        "${eval:1}",
        "${oc.env:NOT_THERE}",
        "${nowhere}",
    ],
)
def test_other_resolvers_are_refused_with_their_key(value, monkeypatch):
    monkeypatch.setenv("KIND", "oc.create")
    with pytest.raises(InputError) as caught:
        resolved(OmegaConf.create({"seed": 7, "optimizer": {"lr": 1}, "here": {"a": value}}))
    assert caught.value.asked == "here.a"


@pytest.mark.parametrize("word", ["tags=['${oc.create:{a: 1}}']", "seed=${oc.decode:'7'}", "tags=['${seed']"])
def test_other_resolvers_are_refused_on_the_command_line(word, capsys):
    assert main(["train", word]) == 2
    assert word.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("value", ["${seed}", "${oc.select:seed}", "${oc.env:PLACE}", "${oc.env:PLACE,x}"])
def test_known_resolvers_are_resolved(value, monkeypatch):
    monkeypatch.setenv("PLACE", "7")
    cfg = OmegaConf.create({"seed": 7, "a": value})
    assert str(resolved(cfg)["a"]) == "7"


@pytest.mark.parametrize(
    "text",
    [
        "${oc.create:" + NODE + "}",
        "${seed}",
        "\\${seed}",
        "\\\\${seed}",
        "${",
        "a${b${c}}",
        "back\\slash",
        "'q' \"${x}\"",
    ],
)
def test_a_string_stays_a_string_here_and_in_the_written_config(text, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(run, "fit", lambda config, command: made.append(config))
    cfg = compose()
    config = schema.check(cfg) | {"tags": [text], "run_dir": "old"}
    assert build("logger.x", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": text}).save_dir == text
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert main(["train", "--from", str(tmp_path)]) == 0
    assert made[0]["tags"] == [text]


def test_what_a_variable_holds_is_not_resolved(monkeypatch):
    monkeypatch.setenv("PLACE", "${oc.create:" + NODE + "}")
    assert schema.check(compose(["tags=['${oc.env:PLACE}']"]))["tags"] == ["${oc.create:" + NODE + "}"]


def test_the_folder_that_is_decided_later_is_filled_in():
    config = schema.check(compose(["tags=['${run_dir}/x']"]))
    assert config["run_dir"] is None and config["tags"] == [f"{NO_RUN_DIR}/x"]
    assert with_run_dir(config, "RUN")["tags"] == ["RUN/x"]


HYDRA = {
    "callbacks: {x: {_target_: os.system, command: 'touch made'}}": "hydra.callbacks.x",
    "callbacks: {x: {_target_: acting.Acting}}": "hydra.callbacks.x",
    "launcher: {_target_: acting.Acting}": "hydra.launcher",
    "sweeper: {_target_: subprocess.Popen}": "hydra.sweeper",
    "sweeper: {params: {_target_: acting.Acting}}": "this key takes no object",
    "job_logging: {handlers: {x: {(): acting.act}}}": "hydra.job_logging.handlers.x.()",
    "hydra_logging: {handlers: {x: {class: acting.Acting}}}": "hydra.hydra_logging.handlers.x.class",
    "job_logging: {handlers: {x: {class: logging.FileHandler, filename: made}}}": "hydra.job_logging.handlers.x.class",
    "job_logging: {formatters: {x: {(): os.system}}}": "hydra.job_logging.formatters.x.()",
    "job_logging: {handlers: {x: {class: logging.StreamHandler, stream: 'ext://acting.act'}}}": "ext://acting.act",
    "job: {env_set: {LD_PRELOAD: evil.so}}": "hydra.job.env_set.LD_PRELOAD",
    "launcher: {setup: ['touch made']}": "hydra.launcher.setup",
}
ACTING = """
def act(*_, **__):
    open("made", "w")

class Acting:
    def __init__(self, *_, **__):
        open("made", "w")
"""


@pytest.fixture
def acting(tmp_path, monkeypatch):
    (tmp_path / "acting.py").write_text(ACTING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "fit", lambda config, command: None)
    return tmp_path


@pytest.mark.parametrize("flags", [[], ["-m"]])
@pytest.mark.parametrize("text", HYDRA)
def test_settings_of_hydra_in_a_file_run_nothing(text, flags, acting, capsys):
    (acting / "experiments").mkdir()
    (acting / "experiments" / "sent.yaml").write_text(f"# @package _global_\nhydra: {{{text}}}\n")
    words = ["hydra/launcher=submitit_local"] if "setup" in text else []
    assert main(["train", *flags, "--config-dir", str(acting), *words, "experiments=sent"]) == 2
    assert HYDRA[text] in capsys.readouterr().err
    assert not (acting / "made").exists()


@pytest.mark.parametrize("text", [text for text in HYDRA if "setup" not in text])
def test_settings_of_hydra_in_a_saved_config_run_nothing(text, acting, capsys):
    config = as_yaml(schema.check(compose()) | {"run_dir": "old"})
    (acting / "config.yaml").write_text(f"{config}\nhydra: {{{text}}}\n")
    assert main(["train", "--from", str(acting)]) == 2
    assert HYDRA[text] in capsys.readouterr().err
    assert not (acting / "made").exists()


def test_a_saved_config_with_a_program_in_it_is_refused(acting, capsys):
    config = as_yaml(schema.check(compose()) | {"run_dir": "old"})
    for node in ("cProfile.run", "acting.act", "acting.Acting"):
        text = config.replace("alignlab.callbacks.progress.ProgressLine", node)
        assert text != config
        (acting / "config.yaml").write_text(text)
        assert main(["train", "--from", str(acting)]) == 2
        assert f"callbacks.progress._target_={node}" in capsys.readouterr().err
    assert not (acting / "made").exists()


def test_commands_may_be_typed(acting):
    assert main(["train", "+hydra.job.env_set.ALIGNLAB_TYPED=1"]) == 0
