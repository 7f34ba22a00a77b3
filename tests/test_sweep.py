"""The table over seeds, against plain loops."""

import numpy as np
import pytest
from scipy import stats

from kfkd_jax import config as config_lib
from kfkd_jax import files, stages
from kfkd_jax.stages import sweep


def row(method, seed, accuracy, gain, split="test"):
  return {
    "method": method,
    "seed": seed,
    "split": split,
    "accuracy": accuracy,
    "gain": gain,
    "nll": 1.0 + seed,
    "ece": 0.1,
    "brier": 0.5,
    "train_cost": 1.0,
    "inference_cost": 3,
    "storage_cost": 3,
  }


def test_means_and_intervals_over_seeds():
  gains = [0.1, 0.3, -0.1, 0.2]
  rows = [row("kf", s, 0.5 + g, g) for s, g in enumerate(gains)]
  kf = sweep.summarise(rows, level=0.9)["kf"]
  low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.9)
  assert kf["gain"] == pytest.approx(np.mean(gains))
  assert kf["gain_interval"] == pytest.approx([low, high])
  assert kf["accuracy_interval"] == pytest.approx([0.5 + low, 0.5 + high])
  assert (kf["wins"], kf["num_seeds"]) == (3, 4)
  assert kf["nll"] == 2.5


def test_halvings_of_one_seed_count_as_one():
  rows = [
    row("kf", 0, 0.5, 0.1, "test/0"),
    row("kf", 0, 0.7, 0.3, "test/1"),
    row("kf", 1, 0.9, 0.4, "test/0"),
  ]
  kf = sweep.summarise(rows)["kf"]
  assert kf["num_seeds"] == 2
  assert kf["accuracy"] == pytest.approx((0.6 + 0.9) / 2)


def test_one_seed_has_no_interval():
  summary = sweep.summarise([row("kf", 0, 0.5, 0.1)])
  assert summary["kf"]["gain_interval"] is None
  assert sweep.table(summary).splitlines()[-1].startswith("| kf | 0.500 | +0.1")


def test_every_seed_has_its_folder_and_is_run_once(tmp_path, monkeypatch):
  ran = []

  def run(config, folder, say):
    if not (folder / "results.jsonl").exists():
      ran.append(config.seed)
      rows = [row("final", config.seed, 0.5, 0.0)]
      files.write_json_lines(folder / "results.jsonl", rows)

  monkeypatch.setattr(stages, "run", run)
  config = config_lib.default_config()
  sweep.run(config, tmp_path, range(2))
  table = sweep.run(config, tmp_path, range(3))
  assert ran == [0, 1, 2]
  assert "| final | 0.500 |" in table
  assert files.read_json(tmp_path / "sweep.json")["seeds"] == [0, 1, 2]


def test_no_seeds(tmp_path):
  with pytest.raises(ValueError, match="at least 1"):
    sweep.run(config_lib.default_config(), tmp_path, [])
