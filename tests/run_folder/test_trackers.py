"""What holds for every tracker: one run per job, the same one after a resume, our axis, the results.

Those of MLflow and Trackio run with ``make test-trackers``, which installs both beside the environment.
"""

import importlib
import json
import struct
import sys
from pathlib import Path

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from wandb.proto import wandb_internal_pb2

from alignlab.errors import InputError
from alignlab.run_folder import loggers, mlflow_run, trackio_run
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.loggers import close_loggers
from alignlab.run_folder.storage import SavedState
from alignlab.run_folder.wandb_run import offline_runs, sync_command

WANDB = {"project": "toy", "entity": None, "group": None, "name": None, "tags": [], "mode": "offline"}


def saved_by_wandb(folder: Path):
    """The records in the files of a run's offline W&B runs: blocks of 32 KiB, as in LevelDB's log."""
    wandb.teardown()  # its service may write the last records after the run has ended
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, text = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := 2**15 - at % 2**15) < 7:
                at += left
                continue
            size, kind = struct.unpack_from("<HB", data, at + 4)
            text, at = text + data[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):  # a whole record, or its last part
                yield wandb_internal_pb2.Record.FromString(text)
                text = b""


def plain(items):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


class OfWandb:
    def open(self, folder):
        return loggers.wandb(**WANDB, artifacts="none", run_folder=folder)

    def read(self, folder):
        curves, results = {}, {}
        for record in saved_by_wandb(folder):
            if record.WhichOneof("record_type") == "history":
                row = plain(record.history.item)
                for name, value in row.items():
                    curves.setdefault(name, []).append((row["progress/step"], value))
            results |= plain(record.summary.update)
        return curves, results

    def identities(self, folders):
        return {(folder / "wandb" / "run_id.txt").read_text() for folder in folders}


class OfTensorBoard:
    def open(self, folder):
        return loggers.tensorboard(run_folder=folder)

    def read(self, folder):
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        curves = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
        return curves, {"wall_seconds": 3.5}  # its table has settings and metrics: see below

    def identities(self, folders):
        return {folder for folder in folders if len(list((folder / "tensorboard").glob("events.*"))) >= 1}


class OfMLflow:
    def open(self, folder):
        return mlflow_run.mlflow(tracking_uri=None, experiment=None, name=None, tags=["a"], run_folder=folder)

    def read(self, folder):
        client = importlib.import_module("mlflow").MlflowClient()
        run_id = (folder / "mlflow" / "run_id.txt").read_text()
        run = client.get_run(run_id)
        assert (run.info.run_name, run.info.status, run.data.tags["a"]) == (folder.name, "FINISHED", "true")
        assert run.data.params["optimizer/lr"] == "0.1" and run.data.tags["summary/status"] == "done"
        curves = {
            name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
            for name in run.data.metrics
        }
        return curves, {name.removeprefix("summary/"): value for name, value in run.data.metrics.items()}

    def identities(self, folders):
        client = importlib.import_module("mlflow").MlflowClient()
        experiment = client.get_experiment_by_name("alignlab").experiment_id
        return {run.info.run_id for run in client.search_runs([experiment])}


class OfTrackio:
    def open(self, folder):
        return trackio_run.trackio(project=None, group=None, name=None, run_folder=folder)

    def read(self, folder):
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        name = (folder / "trackio" / "run_name.txt").read_text()
        assert storage.get_run_config("alignlab", name)["optimizer"] == {"lr": 0.1}
        curves = {}
        for row in storage.get_logs("alignlab", name):
            for metric, value in row.items():
                curves.setdefault(metric, []).append((row["step"], value))
        return curves, {key.removeprefix("summary/"): points[-1][1] for key, points in curves.items()}

    def identities(self, folders):
        return set(importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_runs("alignlab"))


MARKS = [pytest.mark.trackers, pytest.mark.filterwarnings("ignore")]
KINDS = [OfWandb, OfTensorBoard, pytest.param(OfMLflow, marks=MARKS), pytest.param(OfTrackio, marks=MARKS)]


@pytest.fixture
def tracker(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MLflow's database
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if request.param is OfTrackio:
        importlib.import_module("trackio")
        for module in ("utils", "sqlite_storage"):
            monkeypatch.setattr(f"trackio.{module}.TRACKIO_DIR", tmp_path / "trackio")
    return request.param()


def train(tracker, path, first_step, last_step, value):
    """A job that logs the metrics of some optimizer steps, and ends."""
    path.mkdir(exist_ok=True)
    saved = SavedState(path / "checkpoints" / f"step-{first_step:08}", first_step, 1) if first_step else None
    logger = tracker.open(RunFolder(path, saved))
    logger.log_hyperparams({"resume": "auto" if first_step else None, "optimizer": {"lr": 0.1}})
    for step in range(first_step, last_step):
        logger.log_metrics({"train/loss": value + step, "epoch": 0}, step=step)
    logger.log_metrics({"val/pass@1": 0.5}, step=last_step - 1)
    logger.finalize("success")
    summary = {"status": "done", "wall_seconds": 3.5, "best": None, "metrics": {"val/pass@1": 0.5}}
    close_loggers([logger], summary=summary, artifacts={}, succeeded=True)


@pytest.mark.parametrize("tracker", KINDS, indirect=True)
def test_each_job_has_one_run_on_our_axis_which_a_resume_continues(tmp_path, tracker):
    """Two jobs in one process; the first is resumed at step 2 after it had logged step 3."""
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    for path in (first, second):
        path.parent.mkdir()
    train(tracker, first, 0, 3, value=0)
    train(tracker, second, 0, 1, value=20)
    train(tracker, first, 2, 4, value=10)
    assert len(tracker.identities([first, second])) == 2
    curves, results = tracker.read(first)
    assert dict(curves["train/loss"]) == {1: 0, 2: 1, 3: 12, 4: 13}
    assert dict(tracker.read(second)[0]["train/loss"]) == {1: 20}
    assert any(dict(curves.get(name, ())).get(4) == 0.5 for name in ("val/pass@1", "val/pass_at_1"))
    assert not {"epoch", "trainer/global_step"} & curves.keys()
    assert results["wall_seconds"] == 3.5


@pytest.mark.parametrize(
    ("package", "tracker"),
    [("mlflow", OfMLflow), ("trackio", OfTrackio)],
)
def test_a_tracker_that_is_not_installed_is_refused_with_the_command(tmp_path, monkeypatch, package, tracker):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package} is not installed\. pip install 'alignlab\[{package}\]'"):
        tracker().open(RunFolder(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "tracker"), [("mlflow", OfMLflow), ("trackio", OfTrackio)])
def test_other_ranks_import_no_tracker(tmp_path, monkeypatch, package, tracker):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(loggers.rank_zero_only, "rank", 1)
    logger = tracker().open(RunFolder(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, step=0)
    close_loggers([logger], summary={}, artifacts={}, succeeded=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.trackers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tracker", [OfMLflow], indirect=True)
def test_an_mlflow_run_that_the_database_lacks_is_made_anew_and_a_wrong_address_refused(tmp_path, tracker):
    folder = RunFolder(tmp_path)
    (tmp_path / "mlflow").mkdir()
    folder.mlflow_id.write_text("0123")
    assert tracker.open(folder).run_id == folder.mlflow_id.read_text() != "0123"
    with pytest.raises(InputError, match="logger=mlflow with tracking_uri=nothing://x"):
        mlflow_run.mlflow(tracking_uri="nothing://x", experiment=None, name=None, tags=[], run_folder=folder)


@pytest.mark.trackers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tracker", [OfTrackio], indirect=True)
def test_a_project_name_that_trackio_refuses_is_refused(tmp_path, tracker):
    with pytest.raises(InputError, match="logger=trackio with project="):
        trackio_run.trackio(project="registry-mine", group=None, name=None, run_folder=RunFolder(tmp_path))


def test_wandb_is_told_of_each_metric_before_it_is_logged(tmp_path):
    """A new project shows the best and the last value, and has no charts of the counters."""
    logger = OfWandb().open(RunFolder(tmp_path))
    for step, loss in enumerate((3.0, 1.0, 2.0)):
        logger.log_metrics({"val/loss": loss, "val/other/exact_match": 4 - loss, "train/lr": loss}, step=step)
        logger.log_metrics({"progress/tokens": 7.0}, step=step)
    summary = dict(logger.experiment.summary)
    close_loggers([logger], summary={}, artifacts={}, succeeded=True)
    assert dict(summary["val/loss"]) == {"min": 1, "last": 2} and summary["train/lr"] == 2
    assert dict(summary["val/other/exact_match"]) == {"max": 3, "last": 2}
    defined = [record.metric for record in saved_by_wandb(tmp_path) if record.WhichOneof("record_type") == "metric"]
    hidden = {metric.name for metric in defined if metric.options.hidden}
    assert hidden == {"progress/step", "progress/tokens"}
    assert {metric.step_metric for metric in defined if metric.name != "progress/step"} == {"progress/step"}


def test_one_command_sends_all_that_was_kept_offline(tmp_path):
    assert sync_command(offline_runs(tmp_path)) is None
    names = [f"offline-run-20250101_12000{second}-ab12" for second in range(3)]
    for name in [*names, "run-20250101_120009-ab12"]:
        (tmp_path / "a run" / "wandb" / name).mkdir(parents=True)
    (tmp_path / "a run" / "wandb" / names[1] / "run-ab12.wandb.synced").touch()
    first, last = (tmp_path / "a run" / "wandb" / names[index] for index in (0, 2))
    assert sync_command(offline_runs(tmp_path / "a run")) == f"wandb sync '{first}' '{last}'"


def test_tensorboard_has_a_row_of_settings_and_last_values(tmp_path):
    for name, succeeded in (("done", True), ("failed", False)):
        logger = OfTensorBoard().open(RunFolder(tmp_path / name))
        logger.log_hyperparams({"optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}, "peft": None, "debug": False})
        logger.log_metrics({"val/loss": 1.0, "train/lr": 0.1}, step=4)
        logger.finalize("success")
        last = {"val/loss": 1.0, "val/nll": None, "train/lr": 0.1}
        close_loggers([logger], summary={"metrics": last}, artifacts={}, succeeded=succeeded)
        events = EventAccumulator(str(tmp_path / name / "tensorboard")).Reload()
        tags = events.PluginTagToContent("hparams")
        row = {tag: HParamsPluginData.FromString(content) for tag, content in tags.items()}
        settings = row["_hparams_/session_start_info"].session_start_info.hparams
        assert settings["optimizer/lr"].number_value == 0.1 and settings["debug"].bool_value is False
        assert settings["optimizer/betas"].string_value == "[0.9, 0.95]" and "peft" not in settings
        shown = [metric.name.tag for metric in row["_hparams_/experiment"].experiment.metric_infos]
        assert shown == ["val/loss"] and [event.step for event in events.Scalars("val/loss")] == [5]
        assert ("_hparams_/session_end_info" in row) is succeeded


def test_tables_of_samples_are_logged_at_their_step(tmp_path):
    """TensorBoard gets the texts, with rewards, and W&B a table at the same step."""
    from alignlab.callbacks.samples import _log_table

    records = [{"step": 21, "prompt": "2+2", "completion": "so\n4|", "reward": 1.0}]
    for kind in (OfWandb, OfTensorBoard):
        logger = kind().open(RunFolder(tmp_path))
        _log_table(logger, records, 21)
        close_loggers([logger], summary={}, artifacts={}, succeeded=True)
    assert [step for step, _ in OfWandb().read(tmp_path)[0]["samples/nrows"]] == [21]
    event = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("samples/text_summary")[0]
    assert event.step == 21 and "| 21 | 2+2 | so<br>4\\| | 1.0 |" in event.tensor_proto.string_val[0].decode()
