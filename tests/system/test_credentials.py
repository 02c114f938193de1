"""Passwords, keys and tokens stand in no file, log or message; a run that needs them still gets them."""

import json
import logging
import os
import stat
from pathlib import Path

import pytest
import wandb as library

from alignlab import run
from alignlab.cli.composition.compose import compose
from alignlab.cli.composition.hidden import hide_config, hide_words
from alignlab.cli.main import main
from alignlab.cli.sweep import sweep
from alignlab.config import schema
from alignlab.config.build import build
from alignlab.config.resolve import as_yaml
from alignlab.errors import InputError
from alignlab.models.export import save
from alignlab.rewards.external_rules import post
from alignlab.run_folder import loggers
from alignlab.run_folder.choice import config_hash
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.log import captured
from alignlab.system.credentials import PREFIX, blanked, is_secret, masked, revealed
from tests.commands import QUIET, alignlab

SECRETS = ("pa55word", "k3y-of-mine", "t0ken-of-env")
HTTP = ["method=grpo", "method/reward=[http]"]
URL = "method.reward.http.url='https://me:pa55word@host.org/score?api_key=k3y-of-mine&size=3'"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "t0ken-of-env")
    yield
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]


def config_of(*words):
    cfg = compose(hide_words(words))
    hide_config(cfg)
    return schema.check(cfg)


def in_none(text):
    return [secret for secret in SECRETS if secret in text] == []


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hf_token", "api_key", "apiKey", "API-KEY", "AWS_SECRET_ACCESS_KEY", "password", "DB_PASSWORD_2"),
        *("auth", "headers.Authorization", "credentials", "logger.x.secret"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer", "max_tokens", "num_tokens", "data.max_tokens_per_sequence", "max_tokens_per_micro_batch"),
        *("keys", "monkey", "author", "keyboard", "tokenize_workers", "model.config.pad_token", "eos_token"),
        "data.columns.key",
    ],
)
def test_other_names_are_none(name):
    assert not is_secret(name)


def test_what_is_typed_becomes_a_reference_and_is_filled_in_where_it_is_used(capsys):
    config = config_of(*HTTP, URL)
    assert in_none(as_yaml(config)) and in_none(json.dumps(config))
    assert "host.org/score?api_key=${oc.env:ALIGNLAB_SECRET" in config["method"]["reward"]["http"]["url"]
    reward = build("method.reward.http", config["method"]["reward"]["http"])
    assert reward.url == "https://me:pa55word@host.org/score?api_key=k3y-of-mine&size=3"
    said = capsys.readouterr().err
    assert "method.reward.http.url is written nowhere" in said and "${oc.env:NAME}" in said and in_none(said)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("rollout.environment={HF_TOKEN: pa55word}", "rollout.environment.HF_TOKEN"),
        ("rollout.environment={A: '${oc.env:MY_TOKEN}'}", "rollout.environment.A"),
        ("rollout.arguments=['--api-key', pa55word]", "rollout.arguments.1"),
        ("rollout.arguments=['--api-key=pa55word']", "rollout.arguments.0"),
        ("rollout.urls=['http://me:pa55word@host:80']", "rollout.urls.0"),
        ("tags=[hf_abcdefghijklmnopqrstuvwx]", "tags.0"),
        ("tags=['x-${oc.env:MY_TOKEN}-y']", "tags.0"),
        ("tags=['Authorization: Bearer pa55word']", "tags.0"),
    ],
)
def test_secrets_of_every_form(word, key):
    config = config_of("method=grpo", "rollout=vllm", word)
    value = config
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    assert "${oc.env:" in value and in_none(as_yaml(config)) and "hf_abc" not in as_yaml(config)
    assert any(secret in revealed(key, value) for secret in (*SECRETS, "hf_abcdefghijklmnopqrstuvwx"))


def test_a_secret_in_a_file_of_options_is_moved_too(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /method: grpo}, {override /method/reward: [http]}]\n"
        "method: {reward: {http: {url: 'http://me:pa55word@host'}}}\n"
    )
    cfg = compose(["experiments=mine"], config_dir=tmp_path)
    hide_config(cfg)
    assert in_none(as_yaml(schema.check(cfg)))


def test_an_ordinary_variable_is_filled_in_and_written(monkeypatch):
    monkeypatch.setenv("PLACE", "here")
    assert config_of("tags=['${oc.env:PLACE}']")["tags"] == ["here"]


def test_a_variable_whose_value_holds_a_password_is_kept_out_whatever_its_name(monkeypatch):
    monkeypatch.setenv("PLACE", "http://me:pa55word@host")
    config = config_of(*HTTP, "method.reward.http.url=${oc.env:PLACE}")
    assert in_none(as_yaml(config)) and config["method"]["reward"]["http"]["url"] == "${oc.env:PLACE}"


@pytest.mark.parametrize("default", ["", ",me:pa55word"])
def test_what_becomes_a_secret_when_it_is_put_together_is_kept_out(default, monkeypatch):
    if not default:
        monkeypatch.setenv("LOGIN", "me:pa55word")
    config = config_of(*HTTP, f"method.reward.http.url='http://${{oc.env:LOGIN{default}}}@host'")
    assert in_none(as_yaml(config))
    assert build("method.reward.http", config["method"]["reward"]["http"]).url == "http://me:pa55word@host"


def test_a_run_is_the_same_however_its_secret_is_given():
    typed = config_of(*HTTP, "method.reward.http.url='http://me:pa55word@host'")
    named = config_of(*HTTP, "method.reward.http.url='http://${oc.env:MY_TOKEN}@host'")
    other = config_of(*HTTP, "method.reward.http.url='http://${oc.env:MY_TOKEN}@elsewhere'")
    assert config_hash(typed) == config_hash(named) != config_hash(other)
    assert blanked(typed) == blanked(named)


def test_a_run_whose_typed_secret_is_gone_asks_for_it_again(tmp_path, monkeypatch, capsys):
    text = as_yaml(config_of(*HTTP, URL) | {"run_dir": "old"})
    (tmp_path / "config.yaml").write_text(text)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    made = []
    monkeypatch.setattr(run, "fit", lambda config, command: made.append(config))
    assert main(["train", "--from", str(tmp_path)]) == 2
    assert "method.reward.http.url" in (said := capsys.readouterr().err) and PREFIX in said
    assert main(["train", "--from", str(tmp_path), URL]) == 0
    assert build("method.reward.http", made[0]["method"]["reward"]["http"]).url.startswith("https://me:pa55word@")


def test_a_word_that_cannot_be_read_is_refused_without_its_secret(capsys):
    assert main(["train", *HTTP, "method.reward.http.url=http://me:pa55word@host/(x"]) == 2
    assert in_none(capsys.readouterr().err)


def files_with_secrets(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in SECRETS)
    ]


USES = """
import lightning

class Uses(lightning.Callback):
    def __init__(self, *, token: str, url: str):
        self.token, self.url = token, url

    def on_fit_start(self, trainer, method):
        print("used", self.token, self.url)
        assert (self.token, self.url) == ("t0ken-of-env", "http://me:pa55word@host/?key=k3y-of-mine")
"""


def test_no_file_of_a_run_holds_a_secret(tmp_path, monkeypatch, capsys):
    """Config, hparams, W&B's files, the log, checkpoints and the summary of a run of two steps."""
    (tmp_path / "using.py").write_text(USES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    mine = ["+callbacks.mine._target_=using.Uses", "+callbacks.mine.token=${oc.env:MY_TOKEN}"]
    mine += ["+callbacks.mine.url='http://me:pa55word@host/?key=k3y-of-mine'"]
    code = alignlab(
        *("train", "callbacks.exact_match=null", "logger=[wandb,tensorboard]", "data.source.num_train=64"),
        *("trainer.max_steps=2", f"run_dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}", *mine),
    )
    assert code == 0 and (tmp_path / "run" / "tensorboard").is_dir()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert files_with_secrets(tmp_path / "run") == []
    assert "token: ${oc.env:MY_TOKEN}" in (tmp_path / "run" / "config.yaml").read_text()
    assert "used *** http://***@host/?key=***" in (tmp_path / "run" / "train.log").read_text()
    captured_text = capsys.readouterr()
    assert in_none(captured_text.out + captured_text.err)


def test_no_file_of_a_sweep_holds_a_secret_and_its_jobs_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = []

    class Ended:
        returncode = 0

        def poll(self):
            return 0

        def terminate(self):
            """Over."""

        kill = wait = terminate

    def start(command, env, **_):
        started.append((command, env))
        return Ended()

    monkeypatch.setattr(sweep.subprocess, "Popen", start)
    main(["train", "-m", *HTTP, URL.replace("size=3'", "size=3','http://me:t0ken-of-env@host'"), "seed=1"])
    assert len(started) == 2 and files_with_secrets(tmp_path) == []
    assert all(in_none(" ".join(command)) for command, _ in started)
    assert {"me:pa55word", "me:t0ken-of-env"} <= set(started[1][1].values())


def test_logs_and_messages_hold_no_secret(tmp_path, capsys):
    revealed("x", "${oc.env:MY_TOKEN}")
    with pytest.raises(RuntimeError), captured(tmp_path / "train.log"):
        print("printed t0ken-of-env")
        logging.getLogger("alignlab.x").warning("logged %s", "t0ken-of-env")
        raise RuntimeError("raised t0ken-of-env")
    text = (tmp_path / "train.log").read_text()
    assert in_none(text + capsys.readouterr().out)
    assert "printed ***" in text and "logged ***" in text and "raised ***" in text
    assert masked("ordinary words") == "ordinary words"


def test_trackers_are_told_references_only(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = RunFolder(tmp_path)
    unset = dict.fromkeys(("entity", "group", "name"))
    logger = loggers.wandb(**unset, project="toy", tags=[], mode="auto", artifacts="config", run_folder=folder)
    logger.log_hyperparams(config_of(*HTTP, URL))
    loggers.close_loggers([logger], summary={}, artifacts={}, succeeded=True)
    assert library.run is None and files_with_secrets(tmp_path) == []


def test_a_variable_that_is_not_set_is_refused_by_its_name():
    with pytest.raises(InputError, match=r"there is no environment variable NOWHERE_TOKEN"):
        config_of("tags=['${oc.env:NOWHERE_TOKEN}']")
    with pytest.raises(InputError, match="export NOWHERE_TOKEN=VALUE"):
        revealed("tags", "${oc.env:NOWHERE_TOKEN}")


def test_the_password_of_an_address_is_sent_as_servers_read_it():
    request = post("https://me:pa%40ss@host:80/x?a=1", b"{}")
    assert request.full_url == "https://host:80/x?a=1"
    assert request.get_header("Authorization") == "Basic bWU6cGFAc3M="


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_of_a_run_have_the_users_umask(mask, tmp_path):
    from alignlab.models.load import Pretrained

    source = Pretrained(
        **{
            "path": "pocket",
            "dtype": "float32",
            "attn_implementation": "auto",
            "gradient_checkpointing": False,
            "compile": False,
        },
        trust_remote_code=False,
        revision=None,
    )
    tokenizer = source.load_tokenizer()
    before = os.umask(mask)
    try:
        save(source.load_model(tokenizer), tokenizer, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == {0o666 & ~mask}


def test_quiet_runs_need_no_secret():
    assert hide_words(list(QUIET)) == list(QUIET)
