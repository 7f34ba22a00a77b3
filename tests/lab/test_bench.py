"""The benchmark: every part runs, and measures what it says."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import files, models
from kfkd_jax.lab import bench
from kfkd_jax.lab.bench import devices, histories, measure, peer, steps
from kfkd_jax.training import objective

TINY = {
  "data.num_train": "40", "selection.num": "30", "predictions.train": "False",
  "model.width": "4", "train.batch_size": "16", "augment.mixup": "0.5",
  "bench.rounds": "2", "bench.steps": "2", "bench.epochs": "1",
  "bench.members": "2", "bench.checkpoints": "2", "bench.fusion": "tiny",
}  # fmt: skip


def tiny(**changes):
  overrides = {**TINY, **{k.replace("__", "."): v for k, v in changes.items()}}
  return config_lib.read(None, list(overrides.items()))


@pytest.fixture(name="text", scope="module")
def fixture_text():
  return config_lib.to_json(tiny())


def check_rows(rows):
  for row in rows:
    assert row["ratio"] > 0, row
    if "milliseconds" in row:
      assert row["milliseconds"] > 0
      assert row["reference_milliseconds"] > 0
  json.dumps(rows)
  return {row["name"]: row for row in rows}


def test_turns_go_forwards_and_backwards():
  calls = []
  functions = {n: lambda n=n: calls.append(n) for n in "ab"}
  seconds = measure.in_turns(functions, 3)
  assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
  assert [len(s) for s in seconds.values()] == [3, 3]


def test_a_row_compares_the_quarter_least_disturbed():
  row = measure.row(
    "x", "y", [2.0, 2.0, 2.0, 2.0, 9.0], [1.0, 1.0, 1.0, 8.0, 8.0], 4
  )
  assert row["milliseconds"] == 500
  assert row["reference_milliseconds"] == 250
  assert row["ratio"] == 2


@pytest.mark.slow
def test_the_bare_step_is_the_loop_s():
  """Without random views and fill rows, both end with the same network."""
  config = tiny(augment__pad="0", augment__cutout="0", data__num_train="16")
  at = steps.setting(config)
  states = []
  ours = steps.make_steps(at, objective.supervised(), None, 1)
  bare = steps.make_bare_steps(at, 1)
  for run in (ours, bare):
    run()
    run()
    cells = dict(zip(run.__code__.co_freevars, run.__closure__, strict=True))
    state = cells["state"].cell_contents
    params = state.params if hasattr(state, "params") else state[0]
    states.append(jax.tree.map(np.asarray, params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states
  )


@pytest.mark.slow
def test_steps_are_measured(text):
  rows = check_rows([
    *steps.measure_steps(text),
    *steps.measure_distillation(text),
    *steps.measure_together(text),
  ])  # fmt: skip
  assert rows["train step of 16, float32"]["limit"] == 1.03
  assert rows["train step of 16, float32, share of peak"]["ratio"] < 1
  assert rows["cached distillation step"]["limit"] == 1.05
  assert rows["live distillation step, 2 teachers"]["limit"] == 1.1
  assert "step of 2 networks in one program" in rows


@pytest.mark.slow
def test_the_stage_is_measured(text):
  stage, floored = steps.measure_stage(text)
  check_rows([stage, floored])
  assert stage["limit"] == 1.2
  assert stage["milliseconds"] == floored["milliseconds"]
  assert stage["reference_milliseconds"] < floored["reference_milliseconds"]
  assert "530 bare predictions" in floored["reference"]


@pytest.mark.slow
def test_stacks_are_measured(text):
  rows = check_rows(histories.measure_predictions(text))
  assert rows["predict_checkpoints, auto, 2 checkpoints"]["limit"] == 1.0
  rows = histories.measure_storage(text)
  assert len(rows) == 4
  assert all(row["ratio"] >= 0 for row in rows)


@pytest.mark.slow
def test_devices_take_turns(text):
  machine = {"backend": "cpu", "devices": ["cpu"]}
  rows = devices.benchmarks(
    config_lib.to_json(tiny(train__batch_size="10")), machine
  )
  # Four and eight do not divide a batch of ten.
  assert [row["name"][:23] for row in check_rows(rows).values()] == [
    "train step on 1 devices", "train step on 2 devices",
  ]  # fmt: skip


@pytest.mark.slow
def test_all_of_it_makes_a_table(tmp_path):
  config = tiny(bench__parts="steps,fusion,audit")
  tables = bench.run(config, epath.Path(tmp_path))
  content = json.loads((tmp_path / "bench.json").read_text())
  assert content["machine"]["backend"] == "cpu"
  assert {row["host_mib"] > 10 for row in content["ratios"]} == {True}
  for row in content["ratios"]:
    assert f"| {row['name']} |" in tables
  assert "knowledge_fusion" in tables
  assert content["audit"]["shape"] == [6, 500, 10]
  assert content["audit"]["seconds"] > 0 and "| audit of |" in tables


def test_peers_train_networks_with_as_many_parameters():
  torch = pytest.importorskip("torch")
  assert tuple(peer.PEERS) == config_lib.default_config().bench.peers
  for it in peer.PEERS.values():
    module = models.create(it.model, 10, width=it.width)
    shape = (1, it.side, it.side, it.channels)
    ours = jax.eval_shape(
      lambda x, m=module: m.init(jax.random.key(0), x), jnp.zeros(shape)
    )
    make = {"cnn": peer.torch_cnn, "resnet18": peer.torch_resnet18}[it.model]
    theirs = make(torch, it.channels, it.width).parameters()
    assert models.num_parameters(ours) == sum(p.numel() for p in theirs)


def test_peers_are_measured():
  pytest.importorskip("torch")
  config = tiny(bench__peers="cnn_8px")
  (row,) = peer.measure_peers(config_lib.to_json(config))
  assert row["limit"] == 1.3
  check_rows([row])


def test_a_missing_peer_is_named_before_anything_runs(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  config = tiny(bench__parts="steps,peer")
  with pytest.raises(config_lib.ConfigError, match="pip install torch"):
    bench.run(config, epath.Path(tmp_path))
  assert not list(tmp_path.iterdir())


def test_images_on_disk_are_refused():
  with pytest.raises(config_lib.ConfigError, match="stream='never'"):
    steps.setting(tiny(data__stream="always"))


def test_a_part_that_fails_leaves_those_before(tmp_path, monkeypatch):
  def fail(text):
    raise RuntimeError("no room")

  row = {"name": "x", "reference": "y", "ratio": 2.0}
  monkeypatch.setattr(
    bench, "_PARTS", {"steps": lambda text: [dict(row)], "stage": fail}
  )
  monkeypatch.setattr(measure, "in_own_process", lambda f, *args: f(*args))
  config = tiny()
  config.bench.parts = ("steps", "stage")
  with pytest.raises(RuntimeError, match="no room"):
    bench.run(config, epath.Path(tmp_path))
  (kept,) = files.read_json(tmp_path / "bench.json")["ratios"]
  assert row.items() <= kept.items()
