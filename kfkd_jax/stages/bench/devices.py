"""The same global batch on 1, 2, 4, 8 devices."""

from __future__ import annotations

import json
import statistics
from typing import Any

import jax
import ml_collections

from kfkd_jax.stages.bench import measure

COUNTS = (1, 2, 4, 8)


def benchmarks(config_json: str) -> list[dict[str, Any]]:
  """A row for each number of devices; on a CPU they share its cores."""
  is_cpu = jax.default_backend() == "cpu"
  counts = [n for n in COUNTS if is_cpu or n <= jax.device_count()]
  seconds = {
    n: measure.in_own_process(_step_seconds, config_json, n) for n in counts
  }
  return [
    {
      "name": f"train step on {n} devices",
      "reference": f"1 device; efficiency {seconds[1] / seconds[n] / n:.2f}",
      "milliseconds": 1000 * seconds[n],
      "reference_milliseconds": 1000 * seconds[1],
      "ratio": seconds[n] / seconds[1],
    }
    for n in counts
  ]


def _step_seconds(config_json: str, num_devices: int) -> float:
  """The median seconds of one step."""
  config = ml_collections.ConfigDict(json.loads(config_json))
  jax.config.update("jax_num_cpu_devices", num_devices)
  from kfkd_jax import parallel
  from kfkd_jax.stages.bench import steps
  from kfkd_jax.training import objective

  at = steps.setting(config)
  mesh = parallel.data_mesh(jax.devices()[:num_devices])
  at = at._replace(mesh=mesh)
  at = at._replace(resident=parallel.replicate(at.resident, mesh))
  count = config.bench.steps
  run = steps.make_steps(at, objective.supervised(), None, count)
  measured = measure.in_turns({"steps": run}, config.bench.rounds)
  return statistics.median(measured["steps"]) / count
