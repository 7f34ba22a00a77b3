"""Separate streams of randomness: each seed changes what it names, no more."""

import jax
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import files, parallel, stages
from kfkd_jax.data import order
from kfkd_jax.run import build, networks, results, streams, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import loop

STREAMS = ("model", "order", "augment", "noise", "selection")


def config_of(**changes):
  small = {"data.num_train": "60", "augment.pad": "1", "train.epochs": "2"}
  return tiny_config(**{**small, **changes})


def facts_of(config):
  """What each stream decides, seen where the program uses it."""
  task, seeds = tasks.load_task(config), streams.seeds_for(config)
  orders = [order.epoch_order(seeds.order, epoch, 60) for epoch in range(3)]
  ids = {name: task.splits[name].ids for name in ("train", "select", "test")}
  wrong = task.ledger.given != task.ledger.clean
  return {
    "model": seeds.model,
    "order": np.stack(orders),
    "augment": seeds.augment,
    "noise": wrong,
    "selection": np.concatenate([ids["train"], ids["select"]]),
    "images": task.images if config.seeds.selection is None else None,
    "test": ids["test"],
  }


@pytest.mark.parametrize("stream", STREAMS)
def test_a_seed_changes_only_what_it_names(stream):
  before = facts_of(config_of())
  after = facts_of(config_of(**{f"seeds.{stream}": "9"}))
  changed = {
    name
    for name in (*STREAMS, "test")
    if not np.array_equal(before[name], after[name])
  }
  # Others in the training set are other pictures, so other labels flip.
  assert changed - {"noise"} == {stream} - {"noise"}
  assert ("noise" in changed) == (stream in ("noise", "selection"))
  if stream != "selection":
    np.testing.assert_array_equal(before["images"], after["images"])


def test_the_root_changes_everything_that_no_seed_holds():
  before = facts_of(config_of())
  after = facts_of(config_of(seed="9", **{"seeds.order": "0"}))
  for name in STREAMS:
    same = np.array_equal(before[name], after[name])
    assert same == (name == "order"), name


def epoch_without_learning(run, config):
  """Parameters and loss of one epoch at learning rate 0, through the loop."""
  task, found = tasks.load_task(config), []
  trained = loop.train(
    epath.Path(run),
    build.make_recipe(Workspace(config)),
    networks.supervised(config).objective,
    {"image": task.images, "label": task.given},
    {},
    seeds=streams.seeds_for(config),
    mesh=parallel.data_mesh(jax.devices()[:1]),
    observe=lambda report: found.append(report.metrics["fit/loss"]),
  )
  return trained.variables["params"], found[0]


def test_the_loop_gives_each_stream_its_part(tmp_path):
  """Without learning the parameters are the first ones, and the loss tells of
  views and labels; an example's view depends on its place in the order."""
  still = {"optim.learning_rate": "0", "train.epochs": "1"}
  params, loss = epoch_without_learning(tmp_path / "plain", config_of(**still))
  for stream in STREAMS:
    config = config_of(**still, **{f"seeds.{stream}": "9"})
    other, other_loss = epoch_without_learning(tmp_path / stream, config)
    same = all(
      np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves(params["Dense_0"]["kernel"]),
        jax.tree.leaves(other["Dense_0"]["kernel"]),
        strict=True,
      )
    )
    assert same == (stream != "model"), stream
    assert other_loss != pytest.approx(loss, rel=1e-5), stream


def everything(workdir):
  """Every file but Orbax's own, whose names are drawn, by its bytes."""
  found = {}
  for path in sorted(workdir.rglob("*")):
    name = str(path.relative_to(workdir))
    if path.name == results.SECONDS:  # what the machine took
      continue
    if path.is_file() and not {"history", "resume"} & set(path.parts):
      found[name] = path.read_bytes()
    elif name.endswith("digests"):
      found[name] = (path / "metadata").read_bytes()
  return found


@pytest.mark.slow
def test_same_seed_leaves_the_same_bytes(tmp_path):
  for name in ("one", "two"):
    stages.run(config_of(), epath.Path(tmp_path) / name, say=lambda line: None)
  one, two = (everything(tmp_path / name) for name in ("one", "two"))
  assert one.keys() == two.keys()
  assert [name for name in one if one[name] != two[name]] == []
  rows = files.read_json_lines(epath.Path(tmp_path) / "one" / "results.jsonl")
  assert len(rows) > 8
