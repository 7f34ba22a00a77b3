"""Several processes, as on a pod, are one program: two of four devices each."""

import os
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

from kfkd_jax import checkpoints, cli, files, lock, parallel, stages
from kfkd_jax import config as config_lib
from kfkd_jax.run import results
from kfkd_jax.run.workspace import Workspace

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
  "import sys\n"
  "from kfkd_jax import cli\n"
  "sys.exit(cli.main(['run', *sys.argv[1:]]))\n"
)
TALK = """
import sys
import numpy as np
from kfkd_jax import parallel, processes

address, count, number = sys.argv[-1].partition("=")[2].split(",")
number = int(number)
processes.connect(address, int(count), number, lost=print)
mesh = parallel.data_mesh()
assert processes.on_main(lambda: [number, "x"]) == [0, "x"]
nested = lambda: processes.on_main(lambda: number)
assert processes.on_main(nested) == 0
assert processes.anywhere(number == 1) and not processes.anywhere(False)
arrays = processes.arrays_from_main(
  lambda: {"b": np.arange(5) > number + 1, "a": np.full((2, 3), number, "f4")}
)
assert arrays["b"].dtype == bool and arrays["b"].tolist() == [0, 0, 1, 1, 1]
np.testing.assert_array_equal(arrays["a"], np.zeros((2, 3), np.float32))
rows = np.arange(16.0)
np.testing.assert_array_equal(
  parallel.to_host(parallel.shard(rows, mesh)), rows
)
agreed = parallel.Agreement(mesh)
print([agreed(number == 1 and call >= 3) for call in range(24)].index(True))
for error in (ValueError("broken"), OSError("full"), FloatingPointError("nan")):
  try:
    processes.on_main(lambda: exec("raise error", {"error": error}))
  except type(error) as told:
    print(told)
try:
  processes.on_main(sys.exit, 143)
except SystemExit as leaving:
  print(leaving.code)
processes.leave(5, "done", "the end")
"""
RUNS = ("teacher", "teacher_ema", "kf_kd", "kf_soup", "kf_kd_ema")


def free_port():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def start(*workdirs, more=(), program=RUN):
  """Two processes of four devices, which are one program.

  Args:
    *workdirs: where, one for both or one for each.
    more: arguments.
    program: what to run.
  """
  flags = re.sub(r"--xla_force\S+", "", os.environ["XLA_FLAGS"])
  environment = {**os.environ, "XLA_FLAGS": flags}
  environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
  address = f"localhost:{free_port()}"
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-c", program, *ARGUMENTS, *more),
        *(
          f"--workdir={workdirs[number % len(workdirs)]}",
          f"--multihost={address},2,{number}",
        ),
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
  # Gloo, which connects CPUs, says so on the standard output, from threads
  # that write into each other's lines.
  chatter = r".*(?:\[Gloo\]|peer ranks).*\n"
  printed = [re.sub(chatter, "", out) for out, _ in said]
  return [p.returncode for p in processes], printed, [err for _, err in said]


def finish(workdir, *, program=RUN):
  codes, printed, errors = end(start(workdir, program=program))
  assert codes == [0, 0], errors
  return printed, errors


def wait_for(path, processes):
  begun = time.monotonic()
  while not path.exists():
    assert time.monotonic() - begun < 200
    assert all(process.poll() is None for process in processes), end(processes)
    time.sleep(0.01)


def variables_of(workdir, run):
  """The arrays of a run's checkpoints, by number and path."""
  config = config_lib.read(None, [], saved=epath.Path(workdir) / "config.json")
  found = {}
  path = results.run_path(workdir, run) / "history"
  with checkpoints.Checkpoints(path) as history:
    for step in history.steps():
      tree = history.restore(step, results.template(Workspace(config)))
      for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        found[step, jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def digests_of(workdir):
  """The sums of every checkpoint, and the files that say what came out."""
  found = {
    str(path.relative_to(workdir)): path.read_text()
    for path in sorted(workdir.glob("runs/*/history/*/digests/metadata"))
  }
  for name in ("fusion.json", "diagnosis.json", "results.jsonl"):
    found[name] = (workdir / name).read_text()
  return found


def assert_close(actual, expected):
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, atol=1e-5, err_msg=name)


def weights_of(workdir):
  (fold,) = files.read_json(epath.Path(workdir) / "fusion.json")["folds"]
  return {name: m["weights"] for name, m in fold["methods"].items()}


def run_here(workdir, num_devices, names):
  """The same stages in this process, on so many devices."""
  overrides = [a.removeprefix("--config.").split("=", 1) for a in ARGUMENTS]
  config = config_lib.read(None, overrides, saved=workdir / "config.json")
  mesh = parallel.data_mesh(jax.devices()[:num_devices])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, "data_mesh", lambda *_, **__: mesh)
    for name in names:
      stages.run_stage(config, epath.Path(workdir), name, say=lambda line: None)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  folder = tmp_path_factory.mktemp("alone")
  run_here(folder, 1, stages.STAGES)
  return folder


def test_two_processes_are_one_program(alone, tmp_path):
  printed, errors = finish(tmp_path, program=RUN_AND_EXPORT)
  assert "The report is at" in printed[0]
  assert "export/ with kf" in printed[0]
  assert printed[1] == errors[0] == errors[1] == ""
  assert not (tmp_path / lock.NAME).exists()
  assert_close(weights_of(tmp_path), weights_of(alone))
  for run in RUNS:
    assert_close(variables_of(tmp_path, run), variables_of(alone, run))
  rows = [
    files.read_json_lines(epath.Path(w) / "results.jsonl")
    for w in (tmp_path, alone)
  ]
  for actual, expected in zip(*rows, strict=True):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
      if isinstance(value, float | list):
        np.testing.assert_allclose(
          actual[key], value, rtol=1e-6, atol=1e-5, err_msg=key
        )
      else:
        assert actual[key] == value, key
  assert {p.name for p in tmp_path.iterdir()} - {"export"} == {
    p.name for p in alone.iterdir()
  }
  assert (tmp_path / "export" / "kf.jaxexp").exists()


def test_processes_hear_of_each_other(tmp_path):
  codes, printed, errors = end(start(tmp_path, program=TALK))
  assert codes == [5, 5], errors
  assert printed[0].split() == ["15", "broken", "full", "nan", "143"]
  assert printed[1].split("\n")[1:4] == [
    "process 0: broken", "process 0: full", "process 0: nan"
  ]  # fmt: skip
  assert printed[0].split()[-1] == printed[1].split()[-1] == "143"
  assert printed[0].split()[0] == printed[1].split()[0]
  assert errors == ["the end\n"] * 2


@pytest.mark.slow  # eight are two processes above
@pytest.mark.parametrize("num_devices", [2, 4, 8])
def test_devices_choose_the_same_fusion(alone, tmp_path, num_devices):
  run_here(tmp_path, num_devices, ("train", "fuse"))
  assert_close(weights_of(tmp_path), weights_of(alone))
  actual = variables_of(tmp_path, "teacher")
  assert_close(actual, variables_of(alone, "teacher"))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("here", "is not HOST:PORT,P,I"),
    ("host:12,2", "is not HOST:PORT,P,I"),
    ("host,2,0", "is not HOST:PORT,P,I"),
    ("host:12,2,-1", "is not HOST:PORT,P,I"),
    ("host:12,2,2", "process 2 is none of 0 to 1"),
  ],
)
def test_malformed_addresses_are_refused(text, message, tmp_path, capsys):
  code = cli.main(["run", f"--workdir={tmp_path}", f"--multihost={text}"])
  assert code == 2
  assert message in capsys.readouterr().err


def test_no_cluster_to_be_found_out_about(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "kfkd_jax.cli", "run", "--multihost"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": os.getcwd()},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1
  assert "give --multihost=HOST:PORT,P,I" in done.stderr


@pytest.fixture(scope="module")
def together(tmp_path_factory):
  folder = tmp_path_factory.mktemp("together")
  finish(folder)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
def test_sigterm_to_any_process_stops_all_and_they_continue(
  together, tmp_path, victims
):
  processes = start(tmp_path)
  # Both are in the loop once an epoch is written down.
  wait_for(tmp_path / "runs" / "teacher" / "metrics.jsonl", processes)
  sent = time.monotonic()
  for victim in victims:
    processes[victim].send_signal(signal.SIGTERM)
  codes, printed, errors = end(processes)
  assert codes == [143, 143], (printed, errors)
  assert errors == ["", ""]
  assert time.monotonic() - sent < 60
  finish(tmp_path)
  assert digests_of(tmp_path) == digests_of(together)


@pytest.mark.slow
def test_killed_process_ends_the_others_and_all_continue(together, tmp_path):
  processes = start(tmp_path)
  wait_for(tmp_path / "runs" / "teacher" / "metrics.jsonl", processes)
  processes[1].kill()
  killed = time.monotonic()
  codes, _, errors = end(processes)
  assert time.monotonic() - killed < 60
  assert codes == [4, -signal.SIGKILL]
  assert errors[0].count("\n") == 1
  assert "gone" in errors[0]
  assert "start all of them again" in errors[0]
  finish(tmp_path)  # takes over the lock that was left
  assert digests_of(tmp_path) == digests_of(together)


@pytest.mark.slow
def test_killed_main_process_ends_the_others_and_all_continue(
  together, tmp_path
):
  """JAX ends them itself, where it kept the processes together."""
  processes = start(tmp_path)
  wait_for(tmp_path / "runs" / "teacher" / "metrics.jsonl", processes)
  processes[0].kill()
  killed = time.monotonic()
  codes, _, errors = end(processes)
  assert time.monotonic() - killed < 60
  assert codes[1] not in (0, 143)
  assert "another" in errors[1]
  finish(tmp_path)
  assert digests_of(tmp_path) == digests_of(together)


@pytest.mark.slow
def test_refusal_of_the_main_process_ends_all(tmp_path):
  with lock.held(epath.Path(tmp_path)):
    codes, _, errors = end(start(tmp_path))
  assert codes == [2, 2]
  assert f"process {os.getpid()} on host" in errors[0]
  assert f"process 0: process {os.getpid()} on host" in errors[1]


@pytest.mark.slow
def test_folders_that_are_not_shared_are_refused(tmp_path):
  codes, _, errors = end(start(tmp_path / "a", tmp_path / "b"))
  assert codes == [2, 2]
  assert "is not the same for all processes" in errors[0]
