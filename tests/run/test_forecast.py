"""What a run will take on disk, against what it took."""

import shutil

import jax
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import cli, parallel
from kfkd_jax.run import build, forecast, networks, streams, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import loop


def config_of(**changes):
  small = {"train.epochs": "3", "history.resume_every": "1"}
  return tiny_config(**{**small, **changes})


def forecast_of(config):
  task = tasks.load_task(config)
  recipe = build.make_recipe(Workspace(config), keep_history=True)
  splits = build.predicted_splits(Workspace(config))
  lesson = networks.supervised(config).objective
  return forecast.forecast(recipe, lesson, task, splits)


def train(config, run):
  task = tasks.load_task(config)
  loop.train(
    run,
    build.make_recipe(Workspace(config), keep_history=True),
    networks.supervised(config).objective,
    {"image": task.images, "label": task.given},
    build.predicted_splits(Workspace(config)),
    seeds=streams.seeds_for(config),
    # Orbax notes the devices of every leaf; eight would be felt at this size.
    mesh=parallel.data_mesh(jax.devices()[:1]),
  )


def near(size, checkpoints, changes):
  """Within a tenth, and what Orbax leaves to chance: into how many files, of
  at least a block each, it gathers the leaves depends on who comes first. The
  more there are, and the busier the machine, the more files."""
  chance = 90_000 if "model.name" in changes else 50_000
  return pytest.approx(size, rel=0.1, abs=chance * checkpoints)


@pytest.mark.parametrize(
  "changes",
  [
    {"model.width": "128"},
    {"model.width": "128", "history.dtype": "bfloat16", "history.keep": "2"},
    pytest.param(
      {"model.name": "resnet18", "model.width": "4", "train.epochs": "2"},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_forecast_is_right_within_a_tenth(tmp_path, changes):
  config, run = config_of(**changes), epath.Path(tmp_path) / "teacher"
  expected = forecast_of(config)
  train(config, run)
  kept = expected.num_checkpoints
  for folder, size, checkpoints in (
    ("history", kept * expected.checkpoint, kept),
    ("resume", expected.resume, 2),
    ("predictions", expected.predictions, 0),
  ):
    assert forecast.used(run / folder) == near(size, checkpoints, changes), (
      folder
    )
  assert forecast.used(run) == near(expected.total, kept + 2, changes)


@pytest.fixture
def disk(monkeypatch):
  """Sets the free space."""

  def set_free(free):
    usage = shutil.disk_usage("/")._replace(free=int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

  return set_free


def test_too_small_a_disk_is_refused_before_training(tmp_path, disk, capsys):
  disk(200_000)
  arguments = [
    f"--config.{key}={value}"
    for key, value in (
      ("data.num_train", 32), ("selection.num", 40), ("train.batch_size", 32),
      ("train.epochs", 100000), ("model.width", 4),
      ("runtime.compilation_cache", False),
    )
  ]  # fmt: skip
  assert cli.main(["train", *arguments, f"--workdir={tmp_path}"]) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1
  for part in ("100000 x", "free 200 kB", "history.keep", "history.dtype"):
    assert part in err, part
  assert not (tmp_path / "runs" / "teacher" / "history").exists()


def test_line_says_what_and_doubts_in_between(tmp_path, disk):
  run = epath.Path(tmp_path) / "teacher"
  run.mkdir()
  expected = forecast.Forecast(1_200_000, 60, 5_000_000, 4e9)
  disk(53e9)
  assert forecast.check(run, expected) == (
    "teacher: history 60 x 1.2 MB = 72 MB, predictions 4 GB, resume 5 MB, "
    "free 53 GB"
  )
  disk(0.95 * expected.total)
  assert forecast.check(run, expected).endswith("may not be enough")
  disk(0.8 * expected.total)
  with pytest.raises(forecast.DiskTooSmallError):
    forecast.check(run, expected)


def test_what_is_there_is_not_counted_again(tmp_path, disk):
  run = epath.Path(tmp_path) / "teacher"
  run.mkdir()
  (run / "half").write_bytes(bytes(500_000))
  expected = forecast.Forecast(1_000_000, 1, 0, 0)
  disk(510_000)
  assert "free 510 kB" in forecast.check(run, expected)
  (run / "half").unlink()
  with pytest.raises(forecast.DiskTooSmallError):
    forecast.check(run, expected)


def test_a_bucket_is_not_asked():
  expected = forecast.Forecast(10**18, 60, 0, 0)
  assert "free" not in forecast.check(epath.Path("gs://b/teacher"), expected)
