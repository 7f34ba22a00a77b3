"""A trace holds the steps it was asked for, and changes none of them."""

import contextlib
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tiny import tiny_config

from kfkd_jax import cli, stages
from kfkd_jax.run import results
from kfkd_jax.training.profiling import NUM_STEPS, WARM_UP, StepTrace


def traced_steps(folder):
  """The numbers of the annotated steps of the trace in a folder."""
  (file,) = folder.rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
  return sorted(
    int(event["args"]["step_num"])
    for event in events
    if event.get("name") == "train" and "step_num" in event.get("args", {})
  )


def test_steps_after_the_warm_up_are_traced(tmp_path, capsys):
  with StepTrace(epath.Path(tmp_path)) as trace:
    step = trace.wrap(jax.jit(lambda x: x + 1))
    x = jnp.zeros(())
    for _ in range(WARM_UP + NUM_STEPS + 4):
      x = step(x)
  assert x == WARM_UP + NUM_STEPS + 4
  assert traced_steps(tmp_path) == list(range(WARM_UP, WARM_UP + NUM_STEPS))
  assert list(tmp_path.rglob("*.xplane.pb"))
  assert f"{tmp_path}: a trace" in capsys.readouterr().out


def test_a_run_that_ends_early_keeps_what_there_is(tmp_path):
  with (
    contextlib.suppress(KeyError),
    StepTrace(epath.Path(tmp_path)) as trace,
  ):
    step = trace.wrap(lambda x: x)
    for _ in range(WARM_UP + 2):
      step(0)
    raise KeyError
  assert traced_steps(tmp_path) == [WARM_UP, WARM_UP + 1]
  jax.profiler.start_trace(str(tmp_path / "next"))  # none is left open
  jax.profiler.stop_trace()


def test_a_run_that_is_too_short_says_so(tmp_path, capsys):
  with StepTrace(epath.Path(tmp_path)) as trace:
    trace.wrap(lambda x: x)(0)
  assert "no trace, for it begins after 10 steps" in capsys.readouterr().out
  assert not list(tmp_path.iterdir())


def test_without_a_folder_a_step_is_left_alone():
  with StepTrace(None) as trace:
    assert trace.wrap(print) is print


def test_the_train_stage_is_traced_and_trains_the_same(tmp_path):
  found = {}
  for profile in ("True", "False"):
    folder = epath.Path(tmp_path) / profile
    config = tiny_config(runtime__profile=profile)
    stages.run_stage(config, folder, "train", say=lambda line: None)
    store = results.predictions(folder, "teacher", "test")
    found[profile] = store[len(store) - 1]
    assert (folder / "runs/teacher/profile").exists() == (profile == "True")
  np.testing.assert_array_equal(found["True"], found["False"])
  steps = traced_steps(tmp_path / "True" / "runs" / "teacher" / "profile")
  assert steps == list(range(WARM_UP, WARM_UP + NUM_STEPS))


def test_the_flag_sets_the_key_and_says_when_it_comes_too_late(
  tmp_path, monkeypatch, capsys
):
  seen = []
  monkeypatch.setattr(
    stages,
    "run_stage",
    lambda config, *_, **__: seen.append(config.runtime.profile),
  )
  assert cli.main(["train", "--profile", f"--workdir={tmp_path}"]) == 0
  assert cli.main(["train", f"--workdir={tmp_path}"]) == 0
  assert seen == [True, False]
  assert "no trace" in capsys.readouterr().out
