"""Several processes, as on a pod, are one program: two of four devices each."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from kfkd_jax import checkpoints, cli, files, parallel

ARGUMENTS = [
  "--config.data.num_train=100",
  "--config.selection.num=60",
  "--config.model.name=mlp",
  "--config.model.width=16",
  "--config.augment.pad=0",
  "--config.augment.cutout=0",
  "--config.train.epochs=3",
  "--config.train.batch_size=40",
  "--config.train.average_decay=0.9",
  "--config.optim.learning_rate=0.3",
  "--config.distill.teachers=kf",
  "--config.distill.targets=live",
  "--config.compare.independent=1",
  "--config.compare.bootstrap_samples=100",
  "--config.report.num_examples=2",
  "--config.export.models=kf",
]
RUN_AND_EXPORT = (
  "import sys\n"
  "from kfkd_jax import cli\n"
  "arguments = sys.argv[1:]\n"
  "code = cli.main(['run', *arguments])\n"
  "sys.exit(code or cli.main(['export', *arguments]))\n"
)
RUN = (
  "import sys\nfrom kfkd_jax import cli\n"
  "sys.exit(cli.main(['run', *sys.argv[1:]]))\n"
)


def free_port():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def start(workdir, *more, program=RUN):
  """Two processes of four devices, which are one program."""
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
  address = f"localhost:{free_port()}"
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-c", program, *ARGUMENTS, *more),
        *(f"--workdir={workdir}", f"--multihost={address},2,{number}"),
      ],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]


def end(processes, timeout=300):
  """The exit codes and what was printed, in order of processes."""
  try:
    said = [process.communicate(timeout=timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()
  # Gloo, which connects CPUs, says so on the standard output.
  printed = [re.sub(r"\[Gloo\].*\n", "", out) for out, _ in said]
  return [p.returncode for p in processes], printed, [err for _, err in said]


def finish(workdir, *more, program=RUN):
  codes, printed, errors = end(start(workdir, *more, program=program))
  assert codes == [0, 0], errors
  return printed, errors


def wait_for(path, processes):
  begun = time.monotonic()
  while not path.exists():
    assert time.monotonic() - begun < 200
    assert all(process.poll() is None for process in processes), end(processes)
    time.sleep(0.01)


def checkpoint_of(run):
  """The arrays of the last checkpoint in `history/`, by their path."""
  with checkpoints.Checkpoints(epath.Path(run) / "history") as history:
    tree = history._manager.restore(history.steps()[-1])["tree"]
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}


def assert_same_outcome(actual, expected, runs):
  """Fusion weights equal, parameters and results within 1e-5."""
  for name in ("fusion.json", "manifest.json"):
    left, right = (
      files.read_json(epath.Path(w) / name) for w in (actual, expected)
    )
    if name == "fusion.json":
      left, right = left["folds"], right["folds"]
      assert [f["methods"]["kf"]["weights"] for f in left] == [
        f["methods"]["kf"]["weights"] for f in right
      ]
      pairs = [
        (a["methods"]["mixture"]["weights"], b["methods"]["mixture"]["weights"])
        for a, b in zip(left, right, strict=True)
      ]
      for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-5)
    else:
      assert left.keys() == right.keys()
