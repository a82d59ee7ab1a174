"""Curves at services, by stand-ins that have those calls which their documentation promises."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from aya_jax.errors import AyaError
from aya_jax.metrics import MetricWriter
from aya_jax.training import sinks as module
from aya_jax.training.sinks import metric_sinks

TRAINING = {"name": "sft.western", "group": "tiny"}
TOLD = {"loss": 2.0, "loss/pt": 1.0, "tokens_per_second": 5.0}


class Wandb(ModuleType):
    """https://docs.wandb.ai/ref/python/init"""

    def __init__(self):
        super().__init__("wandb")
        self.__file__ = "wandb.py"
        self.calls = []

    def init(self, *, project=None, group=None, name=None, id=None, resume=None):
        self.calls.append(("init", project, group, name, id, resume))
        return SimpleNamespace(id=id or "new", log=self.log, finish=self.finish)

    def log(self, data, step=None):
        self.calls.append(("log", data, step))

    def finish(self, exit_code=None):
        self.calls.append(("finish", exit_code))


class Mlflow(ModuleType):
    """https://mlflow.org/docs/latest/python_api/mlflow.html"""

    def __init__(self):
        super().__init__("mlflow")
        self.__file__ = "mlflow.py"
        self.calls = []

    def start_run(self, run_id=None, run_name=None):
        self.calls.append(("start_run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))

    def log_metrics(self, metrics, step=None, run_id=None):
        self.calls.append(("log_metrics", metrics, step, run_id))

    def end_run(self, status="FINISHED"):
        self.calls.append(("end_run", status))


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch):
    fake = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def train(directory, services, *, resumed=False, fails=None):
    sink = metric_sinks(**TRAINING, directory=directory, resumed=resumed, sinks=services)
    with MetricWriter(directory, sink=sink) as metrics:
        metrics.write(10, {"loss": 2.0, "loss/pt": 1.0}, timing={"tokens_per_second": 5.0})
        if fails:
            raise fails


def test_a_training_is_a_run_of_each_service(tmp_path, wandb, mlflow):
    train(tmp_path, ["wandb", "mlflow"])
    assert wandb.calls == [
        ("init", "aya_jax", "tiny", "sft.western", None, "allow"),
        ("log", TOLD, 10),
        ("finish", 0),
    ]
    assert mlflow.calls == [
        ("start_run", None, "tiny/sft.western"),
        ("log_metrics", {"loss": 2.0, "loss.pt": 1.0, "tokens_per_second": 5.0}, 10, "new"),
        ("end_run", "FINISHED"),
    ]
    # Nothing of it is left in what becomes the model's folder, nor in the curve that every run shares.
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 10,
        "loss": 2.0,
        "loss/pt": 1.0,
    }


def test_a_training_that_was_broken_off_goes_on_in_its_runs(tmp_path, wandb, mlflow):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ["wandb", "mlflow"], fails=KeyboardInterrupt())
    assert wandb.calls[-1] == ("finish", 1) and mlflow.calls[-1] == ("end_run", "KILLED")
    train(tmp_path, ["wandb", "mlflow"], resumed=True)
    assert [call[4] for call in wandb.calls if call[0] == "init"] == [None, "new"]
    starts = [call[1:] for call in mlflow.calls if call[0] == "start_run"]
    assert starts == [(None, "tiny/sft.western"), ("new", None)]


def test_a_training_from_the_start_is_a_new_run(tmp_path, wandb):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ["wandb"], fails=KeyboardInterrupt())
    train(tmp_path, ["wandb"])
    assert [call[4] for call in wandb.calls if call[0] == "init"] == [None, None]


def test_the_project_is_the_environments(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    train(tmp_path, ["wandb"])
    assert wandb.calls[0][1] == "ours"


def test_a_service_that_fails_is_given_up_and_the_training_goes_on(
    tmp_path, wandb, mlflow, monkeypatch, caplog
):
    def log_metrics(metrics, step=None, run_id=None):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(mlflow, "log_metrics", log_metrics, raising=False)
    sink = metric_sinks(**TRAINING, directory=tmp_path, resumed=False, sinks=["mlflow", "wandb"])
    for step in (1, 2):
        sink.write(step, {"loss": 1.0})
    sink.close(whole=True)
    assert [call[0] for call in wandb.calls] == ["init", "log", "log", "finish"]
    assert [call[0] for call in mlflow.calls] == ["start_run", "end_run"]
    [said] = caplog.messages
    assert "mlflow fails and gets nothing more: the server is gone" in said


def test_only_the_lead_process_sends_curves(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr(module, "is_lead", lambda: False)
    train(tmp_path, ["wandb"])
    assert wandb.calls == []


def test_nothing_is_sent_unasked(tmp_path, wandb, mlflow):
    train(tmp_path, ())
    assert wandb.calls == mlflow.calls == []


def test_what_cannot_be_had_is_told(tmp_path, wandb, monkeypatch):
    with pytest.raises(AyaError, match=r"unknown service 'wandbb'; did you mean 'wandb'\?"):
        train(tmp_path, ["wandbb"])

    def init(**settings):
        raise ValueError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(wandb, "init", init, raising=False)
    with pytest.raises(AyaError, match="wandb starts no run: No API key configured"):
        train(tmp_path, ["wandb"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(AyaError, match="wandb, which is not installed; pip install wandb"):
        train(tmp_path, ["wandb"])


def test_the_folder_of_offline_runs_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(AyaError, match="not installed"):
        train(tmp_path, ["wandb"])
