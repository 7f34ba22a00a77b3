"""What a person sees while a run goes on."""

import sys
import types

import pytest
from etils import epath

from kfkd_jax.config import ConfigError, default_config, validate
from kfkd_jax.run.progress import Progress
from kfkd_jax.training.loop import EpochReport


def report(epoch, **metrics):
  metrics = {
    "fit/loss": 0.5,
    "fit/accuracy": 0.9,
    "test/accuracy": 0.7,
    **metrics,
  }
  return EpochReport(epoch, 8, metrics, 123.4)


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
  with Progress(tmp_path, "teacher", default_config()) as show:
    for epoch in range(1, 9):
      show(report(epoch, **{"select/max_forget": 0.25, "select/accuracy": 0.6}))
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[2] for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
  for word in ("123 steps/s", "loss 0.500", "test 0.700", "max F_e 0.250"):
    assert word in lines[0]


def test_bar_fits_a_terminal(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  monkeypatch.setenv("COLUMNS", "80")
  with Progress(tmp_path, "independent_1", default_config()) as show:
    show(report(8, **{"test/max_forget": 0.25}))
  out, err = capsys.readouterr()
  assert not out
  assert "independent_1" in err
  for word in ("8/8", "123/s", "loss 0.50", "acc 0.700", "F_e 0.250"):
    assert word in err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_files_are_written_without_tensorflow(tmp_path):
  config = default_config()
  config.runtime.tensorboard = True
  with Progress(tmp_path, "teacher", config) as show:
    show(report(1))
  (file,) = (tmp_path / "tensorboard").iterdir()
  content = file.read_bytes()
  assert b"fit/loss" in content
  assert b"test/accuracy" in content
  assert "tensorflow" not in sys.modules


class FakeWandb(types.ModuleType):
  """Notes what Weights & Biases is told."""

  def __init__(self):
    super().__init__("wandb")
    self.calls = []

  def init(self, **options):
    self.calls.append(("init", options))
    self.id = options["id"] or "abc123"
    return self

  def define_metric(self, name, *, step_metric):
    self.calls.append(("define_metric", (name, step_metric)))

  def log(self, values):
    self.calls.append(("log", values))

  def finish(self, *, exit_code):
    self.calls.append(("finish", exit_code))


def wandb_config(project="forgetting"):
  config = default_config()
  config.runtime.wandb = project
  return config


def test_wandb_gets_every_epoch_and_goes_on_with_its_run(tmp_path, monkeypatch):
  run = epath.Path(tmp_path) / "work" / "runs" / "teacher"
  fake = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  with Progress(run, "teacher", wandb_config()) as show:
    show(report(1))
    show(report(2))
  (_, options), metric, *logs, finish = fake.calls
  assert (options["project"], options["name"]) == ("forgetting", "teacher")
  assert (options["id"], options["group"]) == (None, "work")
  assert options["config"]["runtime"]["wandb"] == "forgetting"
  assert metric == ("define_metric", ("*", "epoch"))
  assert [values["epoch"] for _, values in logs] == [1, 2]
  assert logs[0][1]["fit/loss"] == 0.5
  assert finish == ("finish", 0)
  fake.calls.clear()
  with pytest.raises(KeyError), Progress(run, "teacher", wandb_config()):
    raise KeyError
  assert fake.calls[0][1]["id"] == "abc123"
  assert fake.calls[-1] == ("finish", 1)


def test_wandb_is_not_imported_unless_asked_for(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # its import fails
  with Progress(tmp_path, "teacher", default_config()) as show:
    show(report(8))
  with pytest.raises(ConfigError, match="needs the package wandb"):
    Progress(epath.Path(tmp_path), "teacher", wandb_config())


@pytest.mark.parametrize("project", ["", "a/b", "x" * 129])
def test_a_project_that_wandb_refuses_is_refused_here(project):
  with pytest.raises(ConfigError, match=r"runtime\.wandb"):
    validate(wandb_config(project))
