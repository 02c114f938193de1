"""Trackers: one W&B run per job, the same one after a resume, no prompt, our axis."""

import http.server
import logging
import socket
import threading

import pytest
import wandb as library
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alignlab.errors import InputError
from alignlab.run_folder import loggers, wandb_run
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.metrics_file import read_metrics
from alignlab.run_folder.storage import SavedState

OPTIONS = {
    **{"project": "toy", "entity": None, "group": "g", "name": None, "tags": ["a"], "mode": "auto"},
    "artifacts": "config",
}


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A machine on which nobody is logged in."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_tracker_one_run_per_job_and_resume(tmp_path, nobody, monkeypatch):
    """Two jobs in one process get two runs; a resumed job gets its own back; nothing is asked."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for input"))
    identities = []
    for job in ("first", "second", "first"):
        folder = RunFolder(tmp_path / job)
        folder.path.mkdir(exist_ok=True)
        logger = loggers.wandb(**OPTIONS, run_folder=folder)
        run = logger.experiment
        identities.append(run.id)
        assert (run.settings.mode, run.group, run.tags, run.name) == ("offline", "g", ("a",), job)
        logger.log_hyperparams({"seed": 1})
        logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=6)
        logger.log_metrics({"val/loss": 3.0}, step=6)
        assert run.summary["progress/step"] == 7
        assert run.summary["val/loss"]["last"] == 3.0
        assert not {"trainer/global_step", "epoch"} & set(dict(run.summary))
        assert run.config["seed"] == 1
        (folder.path / "config.yaml").write_text("seed: 1")
        loggers.close_loggers(
            [logger], summary={"status": "done"}, artifacts={"config": [folder.config]}, succeeded=True
        )
        assert library.run is None
    assert identities[0] == identities[2] != identities[1]
    assert (tmp_path / "first" / "wandb" / "run_id.txt").read_text() == identities[0]
    assert len(list((tmp_path / "first" / "wandb").glob("offline-run-*"))) >= 1
    assert len(list((tmp_path / "second" / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("setting", "uploaded"), [("none", []), ("config", ["config.yaml"]), ("model", ["config.yaml", "model"])]
)
def test_weights_are_uploaded_only_if_asked(tmp_path, nobody, monkeypatch, setting, uploaded):
    seen = []
    monkeypatch.setattr(loggers, "_log_artifact", lambda run, path: seen.append(path.name))
    folder = RunFolder(tmp_path / "run")
    folder.model.mkdir(parents=True)
    folder.config.write_text("seed: 1")
    files = {"config": [folder.config, folder.path / "absent.png"], "model": [folder.model]}
    logger = loggers.wandb(**OPTIONS | {"artifacts": setting}, run_folder=folder)
    loggers.close_loggers([logger], summary={}, artifacts=files, succeeded=True)
    assert seen == uploaded


def test_where_the_config_is_silent_the_environment_is_heard(tmp_path, nobody, monkeypatch):
    silent = OPTIONS | {"project": None, "group": None, "tags": []}
    names = {"WANDB_PROJECT": "p", "WANDB_RUN_GROUP": "of", "WANDB_NAME": "n", "WANDB_TAGS": "x,y", "WANDB_ENTITY": "e"}
    for environment in ({}, names):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        library.teardown()  # it reads the environment once per process
        folder = RunFolder(tmp_path / f"run{len(environment)}")
        folder.path.mkdir()
        logger = loggers.wandb(**silent, run_folder=folder)
        run = logger.experiment
        found = (run.project, run.group or None, run.name, tuple(run.tags or ()), run.settings.entity)
        loggers.close_loggers([logger], summary={}, artifacts={}, succeeded=True)
        assert found == (("p", "of", "n", ("x", "y"), "e") if environment else ("alignlab", None, "run0", (), None))


def test_a_run_that_an_earlier_job_in_this_process_left_is_ended(tmp_path, nobody):
    left = loggers.wandb(**OPTIONS, run_folder=RunFolder(tmp_path)).experiment
    logger = loggers.wandb(**OPTIONS, run_folder=RunFolder(tmp_path))
    assert library.run is logger.experiment is not left
    loggers.close_loggers([logger], summary={}, artifacts={}, succeeded=True)


def test_who_is_logged_in_is_online(nobody, monkeypatch):
    assert loggers.wandb_mode("auto") == "offline"
    nobody.write_text("machine api.wandb.ai login user password 0123\n")
    assert loggers.wandb_mode("auto") == "online"
    nobody.write_text("machine example.org login user password 0123\n")
    assert loggers.wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert loggers.wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers.wandb_mode("auto") == "disabled"
    assert loggers.wandb_mode("offline") == "offline"


def test_other_ranks_do_not_touch_the_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.rank_zero_only, "rank", 1)
    monkeypatch.setattr(library, "init", lambda **_: pytest.fail("rank 1 made a run"))
    logger = loggers.wandb(**OPTIONS, run_folder=RunFolder(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, step=0)
    assert logger.experiment.anything() is None
    loggers.close_loggers([logger], summary={}, artifacts={}, succeeded=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server(monkeypatch):
    """``server(answer)`` puts a server in the place of W&B that answers so; None: it takes calls and never answers."""
    opened = []

    def start(answer: tuple[int, bytes] | None):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, body = answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        if answer is None:
            listening = socket.create_server(("127.0.0.1", 0))
            opened.append(listening.close)
            port = listening.getsockname()[1]
        else:
            serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=serving.serve_forever, daemon=True).start()
            opened.extend([serving.shutdown, serving.server_close])
            port = serving.server_port
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setattr(wandb_run, "SECONDS_TO_BEGIN", 1)

    library.teardown()  # its service remembers the server that it was started for
    yield start
    for close in opened:
        close()
    library.teardown()


@pytest.mark.parametrize("answer", [None, (200, b"<html>a hotel</html>")], ids=["silent", "something else"])
def test_a_tracker_that_cannot_be_reached_is_offline_and_said(tmp_path, nobody, server, caplog, answer):
    server(answer)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    logger = loggers.wandb(**OPTIONS, run_folder=folder)
    logger.log_metrics({"train/loss": 2.0}, step=0)
    assert logger.experiment.settings.mode == "offline"
    loggers.close_loggers([logger], summary={}, artifacts={}, succeeded=True)
    assert "cannot be reached within 1 s" in caplog.text and "wandb sync" in caplog.text
    assert list(folder.path.glob("wandb/offline-run-*"))


def test_a_wrong_key_is_refused(tmp_path, nobody, server):
    server((401, b'{"errors":[{"message":"permission denied"}]}'))
    with pytest.raises(InputError, match=r"the server refuses .*wandb login --relogin"):
        loggers.wandb(**OPTIONS, run_folder=RunFolder(tmp_path))


def test_online_without_a_key_and_names_that_are_none_are_refused(tmp_path, nobody):
    with pytest.raises(InputError, match="nobody is logged in"):
        loggers.wandb(**OPTIONS | {"mode": "online"}, run_folder=RunFolder(tmp_path))
    with pytest.raises(InputError, match="Invalid project name"):
        loggers.wandb(**OPTIONS | {"project": "a/b#c", "mode": "offline"}, run_folder=RunFolder(tmp_path))


def events(folder, name="train/loss"):
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    accumulator = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_tensorboard_has_our_axis_and_hides_what_a_resume_repeats(tmp_path):
    first = loggers.tensorboard(run_folder=RunFolder(tmp_path))
    for step in range(4):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.finalize("success")
    saved = SavedState(tmp_path / "checkpoints" / "step-00000002", 2, 1)
    second = loggers.tensorboard(run_folder=RunFolder(tmp_path, saved))
    second.log_metrics({"train/loss": 9.0}, step=2)
    second.finalize("success")
    assert events(tmp_path / "tensorboard") == [(1, 0.0), (2, 1.0), (3, 9.0)]


def test_tensorboard_shows_a_run_that_starts_anew_in_its_folder_once(tmp_path):
    for value in (1.0, 2.0):
        logger = loggers.tensorboard(run_folder=RunFolder(tmp_path))
        logger.log_metrics({"val/loss": value}, step=-1)
        logger.finalize("success")
    assert events(tmp_path / "tensorboard", "val/loss") == [(0, 2.0)]


def test_tensorboard_that_is_not_installed_is_refused_with_the_command(tmp_path, monkeypatch):
    def missing(**_):
        raise ModuleNotFoundError

    monkeypatch.setattr(loggers, "TensorBoard", missing)
    with pytest.raises(InputError, match=r"pip install 'alignlab\[tensorboard\]'"):
        loggers.tensorboard(run_folder=RunFolder(tmp_path))


def test_csv_is_the_runs_table(tmp_path):
    logger = loggers.csv(run_folder=RunFolder(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, step=0)
    assert read_metrics(tmp_path / "metrics.csv") == [{"progress/step": 1, "train/loss": 1}]
