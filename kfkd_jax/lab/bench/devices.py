"""The same global batch on 1, 2, 4, 8 devices."""

from __future__ import annotations

import json
import os
from typing import Any

import jax
import ml_collections

from kfkd_jax.lab.bench import measure, steps
from kfkd_jax.training import objective

COUNTS = (1, 2, 4, 8)


def benchmarks(
  config_json: str, machine: dict[str, Any]
) -> list[dict[str, Any]]:
  """A row for each number of devices; on a CPU they share its cores.

  Args:
    config_json: the configuration; its batch divides over the devices.
    machine: its `backend` and `devices`.
  """
  is_cpu = machine["backend"] == "cpu"
  batch_size = json.loads(config_json)["train"]["batch_size"]
  counts = [
    n
    for n in COUNTS
    if (is_cpu or n <= len(machine["devices"])) and batch_size % n == 0
  ]
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
  """Seconds of one step."""
  config = ml_collections.ConfigDict(json.loads(config_json))
  if "device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", num_devices)
  at = steps.setting(config, num_devices)
  count = config.bench.steps
  run = steps.make_steps(at, objective.supervised(), None, count)
  measured = measure.in_turns({"steps": run}, config.bench.rounds)
  return measure.typical(measured["steps"]) / count
