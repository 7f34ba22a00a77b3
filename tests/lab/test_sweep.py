"""Cells of a sweep: who runs which, what is passed over, what fails."""

import contextlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from kfkd_jax import cli, files, lock, stages
from kfkd_jax import config as config_lib
from kfkd_jax.lab import sweep
from kfkd_jax.run.workspace import Workspace


def row(method, seed, accuracy):
  return {
    "method": method,
    "seed": seed,
    "accuracy": accuracy,
    "nll": 1.0,
    "ece": 0.1,
    "brier": 0.5,
    "train_cost": 1.0,
    "inference_cost": 1,
    "storage_cost": 1,
  }


def leave_results(config, folder):
  """What a finished cell holds: two methods on four test points."""
  hits = np.zeros((1, 2, 4), bool)
  hits[0, 0, :2] = hits[0, 1, : 2 + config.seed % 3] = True
  files.write_npz(
    folder / "hits.npz",
    methods=np.array(["final", "kf"]),
    ids=np.arange(4),
    hits=hits,
    tested=np.ones((1, 4), bool),
    scored=np.ones((1, 2), bool),
  )
  rows = [row(m, config.seed, 0.5) for m in ("final", "kf")]
  files.write_json_lines(folder / "results.jsonl", rows)


class Cells:
  """Stands for the pipeline: notes what ran, fails where told to."""

  def __init__(self, root):
    self.root = root
    self.ran = []
    self.failing = {}
    self.on_run = lambda name: None

  def run(self, config, folder, say):
    with lock.held(folder):
      if self.is_up_to_date(Workspace(config, folder), "report"):
        return False  # finished by another since it was looked at
      say("train ...")
      name = str(folder.relative_to(self.root))
      self.ran.append(name)
      self.on_run(name)
      if name in self.failing:
        raise self.failing[name]
      leave_results(config, folder)
    return True

  def is_up_to_date(self, space, stage):
    return (space.path / "results.jsonl").exists()


@pytest.fixture
def cells(tmp_path, monkeypatch):
  fake = Cells(epath.Path(tmp_path))
  monkeypatch.setattr(stages, "run", fake.run)
  monkeypatch.setattr(stages, "is_up_to_date", fake.is_up_to_date)
  return fake


def go(cells, *grid, **options):
  config = config_lib.default_config()
  return sweep.run(config, cells.root, grid=grid, **options)


def test_what_was_compiled_for_a_cell_is_dropped_after_it(cells):
  @jax.jit
  def compiled(x):
    return x + 1

  held = []

  def hold(name):
    compiled(1)
    held.append(compiled._cache_size())

  cells.on_run = hold
  go(cells, num_seeds=3)
  assert held == [1, 1, 1]
  assert compiled._cache_size() == 0


def test_seeds_alone_have_a_folder_each_and_run_once(cells):
  go(cells, num_seeds=2)
  outcome = go(cells, num_seeds=3)
  assert cells.ran == ["seed-0", "seed-1", "seed-2"]
  assert "### 3 seeds" in outcome.table
  assert "| final | 50.00 ± 0.00 |" in outcome.table
  assert outcome.failed == outcome.busy == {}
  note = files.read_json(cells.root / "sweep.json")
  assert note == {"axes": [], "seeds": [0, 1, 2]}
  assert (cells.root / "table.md").read_text() == outcome.table + "\n"


def test_grid_is_the_product_with_readable_names(cells, monkeypatch):
  seen = {}
  cells.on_run = lambda name: seen.setdefault(name)
  run = cells.run

  def remember(config, folder, say):
    run(config, folder, say)
    seen[cells.ran[-1]] = (config.noise.kind, config.noise.rate, config.seed)

  monkeypatch.setattr(stages, "run", remember)
  grid = ("noise.kind=pair,symmetric", "noise.rate=0.20,.4")
  go(cells, *grid, num_seeds=2)
  assert seen == {
    f"noise.kind={kind}/noise.rate={rate}/seed-{seed}": (kind, rate, seed)
    for kind in ("pair", "symmetric")
    for rate in (0.2, 0.4)
    for seed in (0, 1)
  }
  # Every grid point has its first seed before any has its second.
  assert [name[-1] for name in cells.ran] == ["0"] * 4 + ["1"] * 4
  lines = (cells.root / "table.csv").read_text().splitlines()
  assert lines[0].startswith("noise.kind,noise.rate,method,against,seeds,")
  assert len(lines) == 1 + 4 * 2
  assert lines[1].startswith("pair,0.2,final,final,2,")
  paper = (cells.root / "table.tex").read_text().splitlines()
  assert paper[3].startswith("noise.kind & noise.rate & method & accuracy &")
  assert paper[5].startswith("pair & 0.2 & final & 50.00 $\\pm$ 0.00 & +0.00")
  assert len(paper) == 7 + 4 * 2


def test_names_of_folders_hold_no_slash(cells):
  go(cells, "data.name=digits,(synthetic/num_train=9,num_test=9)", num_seeds=1)
  assert cells.ran == [
    "data.name=digits/seed-0",
    "data.name=synthetic%2Fnum_train=9,num_test=9/seed-0",
  ]


def test_continues_and_grows(cells):
  go(cells, "noise.kind=pair", "noise.rate=0.2", num_seeds=1)
  go(cells, "noise.rate=0.4", "noise.kind=pair", num_seeds=1)  # another order
  assert cells.ran == [
    "noise.kind=pair/noise.rate=0.2/seed-0",
    "noise.kind=pair/noise.rate=0.4/seed-0",
  ]
  go(cells)  # as it is noted: nothing is left to do
  outcome = go(cells, num_seeds=2)
  assert len(cells.ran) == 4
  assert outcome.table.count("### noise.kind=pair, noise.rate=0.") == 2


@pytest.mark.parametrize(
  ("grid", "change", "message"),
  [
    ((), {"train__epochs": "7"}, "begun with train.epochs=60, not 7; choose"),
    (("train.epochs=7",), {}, "varies noise.kind, not train.epochs"),
    (
      ("noise.kind=pair", "noise.rate=0.1"),
      {},
      "varies noise.kind, not noise.kind, noise.rate",
    ),
    (("noise.kind=field",), {}, "noise.kind='field' needs noise.field"),
    (("noise.rate=2",), {}, "noise.rate=2.0 is not possible"),
  ],
)
def test_another_base_or_other_axes_are_refused(cells, grid, change, message):
  go(cells, "noise.kind=pair", num_seeds=1)
  before = (cells.root / "sweep.json").read_text()
  config = config_lib.default_config()
  for key, text in change.items():
    config_lib.override(config, key.replace("__", "."), text)
  with pytest.raises(config_lib.ConfigError, match=message) as caught:
    sweep.run(config, cells.root, grid=grid)
  assert "\n" not in str(caught.value)
  assert len(cells.ran) == 1
  assert (cells.root / "sweep.json").read_text() == before


def test_what_decides_no_number_may_differ(cells):
  go(cells, "noise.kind=pair", num_seeds=1)
  config = config_lib.default_config()
  config.runtime.tensorboard = True
  config.seed = 3
  config.noise.kind = "symmetric"  # the grid sets it anyway
  sweep.run(config, cells.root)
  assert cells.ran == ["noise.kind=pair/seed-0"]


def test_impossible_grid_writes_nothing(cells):
  with pytest.raises(config_lib.ConfigError, match=r"needs noise\.field"):
    go(cells, "noise.kind=pair,field", num_seeds=1)
  assert list(cells.root.iterdir()) == []


@pytest.fixture
def clock(monkeypatch):
  """Stands still, but for what a test adds."""
  now = [0.0]
  monkeypatch.setattr(sweep.time, "perf_counter", lambda: now[0])
  return now


def test_cells_are_named_and_the_rest_is_foretold(cells, clock, capsys):
  def take_its_time(name):
    clock[0] += 130 if name.endswith("pair/seed-0") else 250

  cells.on_run = take_its_time
  go(cells, "noise.kind=pair", num_seeds=1)
  out = capsys.readouterr().out
  pair, symmetric = (
    f"noise.kind={kind}/seed-0" for kind in ("pair", "symmetric")
  )
  assert out.splitlines() == [
    f"cell 1 of 1: {pair}",
    f"[{pair}] train ...",
    f"[{pair}] done in 2 min 10 s; no cell is left",
  ]
  cells.failing = {"noise.kind=pair/seed-1": ValueError("no")}
  go(cells, "noise.kind=pair,symmetric", num_seeds=2)
  out = capsys.readouterr().out
  assert f"cell 1 of 4: {pair}" not in out  # it was there
  assert f"cell 2 of 4: {symmetric}\n[{symmetric}] train ...\n" in out
  assert f"[{symmetric}] done in 4 min 10 s; 2 cells left, about 8 min\n" in out
  failed, last = out.splitlines()[-4], out.splitlines()[-1]
  assert failed == "[noise.kind=pair/seed-1] failed: no"
  assert last.endswith("done in 4 min 10 s; no cell is left")


def test_what_others_do_counts(cells, clock, capsys):
  """Of six cells others finish one and hold two while the first one runs."""

  def meanwhile(name):
    clock[0] += 120
    if name == "seed-0":
      leave_results(config_lib.default_config(), cells.root / "seed-1")
      for seed in (2, 3):
        elsewhere.enter_context(lock.held(cells.root / f"seed-{seed}"))

  cells.on_run = meanwhile
  with contextlib.ExitStack() as elsewhere:
    go(cells, num_seeds=6)
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if line.startswith("cell ")] == [
    f"cell {n} of 6: seed-{n - 1}" for n in (1, 5, 6)
  ]
  done = [line.partition("; ")[2] for line in lines if "done in" in line]
  assert done == [
    "4 cells left, 2 of them under way elsewhere, about 3 min",
    "3 cells left, 2 of them under way elsewhere, about 2 min",
    "2 cells left, 2 of them under way elsewhere, about 1 min",
  ]


def test_failed_cells_are_listed_kept_and_tried_again(cells):
  cells.failing = {
    "seed-0": FloatingPointError("loss is nan\nat step 3"),
    "seed-2": RuntimeError("out of memory"),
  }
  outcome = go(cells, num_seeds=4)
  assert cells.ran == ["seed-0", "seed-1", "seed-2", "seed-3"]
  assert outcome.failed == {
    "seed-0": "loss is nan at step 3",
    "seed-2": "out of memory",
  }
  assert "### 2 of 4 seeds" in outcome.table
  note = (cells.root / "seed-2" / "error.txt").read_text()
  assert note.startswith("out of memory\n")
  assert "Traceback" in note and "RuntimeError" in note
  del cells.failing["seed-2"]
  outcome = go(cells)
  assert cells.ran[4:] == ["seed-0", "seed-2"]
  assert list(outcome.failed) == ["seed-0"]
  assert not (cells.root / "seed-2" / "error.txt").exists()


def test_cell_that_failed_under_another_command_is_not_tried_twice(cells):
  def fail_elsewhere(name):
    if name == "seed-0":
      files.write_text(cells.root / "seed-1" / "error.txt", "died there\n\n1")

  cells.on_run = fail_elsewhere
  outcome = go(cells, num_seeds=2)
  assert cells.ran == ["seed-0"]
  assert outcome.failed == {"seed-1": "died there"}
  cells.on_run = lambda name: None
  assert go(cells).failed == {}


def test_held_cell_is_passed_over_and_looked_at_again(cells):
  with contextlib.ExitStack() as elsewhere:
    elsewhere.enter_context(lock.held(cells.root / "seed-0"))
    outcome = go(cells, num_seeds=2)
    assert (cells.ran, list(outcome.busy)) == (["seed-1"], ["seed-0"])
    assert "is at work in" in outcome.busy["seed-0"]
    assert "### 1 of 2 seeds" in outcome.table
    # Let go while the last cell runs: this command takes it in the end.
    cells.on_run = lambda name: name == "seed-2" and elsewhere.close()
    outcome = go(cells, num_seeds=3)
  assert cells.ran == ["seed-1", "seed-2", "seed-0"]
  assert outcome.busy == {} and "### 3 seeds" in outcome.table


def test_finished_cell_may_be_held(cells):
  go(cells, num_seeds=1)
  with lock.held(cells.root / "seed-0"):
    assert go(cells).busy == {}


def test_sweep_that_another_program_holds_is_refused(cells, monkeypatch):
  monkeypatch.setattr(sweep, "_PATIENCE", 0.1)
  with lock.held(cells.root):
    with pytest.raises(lock.LockedError, match="is at work in"):
      go(cells, num_seeds=1)
  assert cells.ran == []


def test_interrupt_is_no_failure(cells):
  def interrupt(name):
    raise KeyboardInterrupt

  cells.on_run = interrupt
  with pytest.raises(KeyboardInterrupt):
    go(cells, num_seeds=2)
  assert cells.ran == ["seed-0"]
  assert not list(cells.root.glob("seed-0/*"))


def test_damaged_note_is_named(cells):
  go(cells, num_seeds=1)
  (cells.root / "sweep.json").write_text('{"seeds": 3}')
  with pytest.raises(ValueError, match=r"sweep.json is damaged; remove it"):
    go(cells)


def kfkd(capsys, *arguments):
  code = cli.main(["sweep", *arguments])
  out, err = capsys.readouterr()
  return code, out, err


def test_command_line(cells, capsys):
  where = f"--workdir={cells.root}"
  grid = ("--grid", "noise.kind=pair,symmetric", "--grid=noise.rate=0.2")
  cells.failing = {"noise.kind=pair/noise.rate=0.2/seed-1": ValueError("no")}
  code, out, err = kfkd(capsys, where, "--seeds=2", *grid)
  assert code == 1
  assert "### noise.kind=symmetric, noise.rate=0.2: 2 seeds" in out
  last = "kfkd: noise.kind=pair/noise.rate=0.2/seed-1 failed: no"
  assert err.splitlines()[-1] == last
  num_runs = len(cells.ran)
  code, out, err = kfkd(capsys, where, "--only-table", "--against=kf")
  assert (code, err, len(cells.ran)) == (0, "", num_runs)
  assert "gain over kf" in out
  assert (cells.root / "table-against-kf.csv").exists()
  code, _, err = kfkd(capsys, where, "--only-table", "--against=swa")
  assert code == 2
  assert "--against='swa' is no method of this sweep; there are final" in err
  with lock.held(cells.root / "noise.kind=pair/noise.rate=0.2/seed-1"):
    code, _, err = kfkd(capsys, where)
  assert code == 0
  assert "seed-1 is under way elsewhere: process" in err
  cells.failing = {}
  assert kfkd(capsys, where)[0] == 0


def leave_choice(cells, point, *, final, gain, seed=0):
  """What chooses of a finished cell besides."""
  folder = cells.root / point / f"seed-{seed}"
  kf = {"accuracy": final + gain, "gain": gain}
  files.write_json(folder / "fusion.json", {"folds": [{"methods": {"kf": kf}}]})
  rows = [
    row("final", seed, 0.5),
    {**row("kf", seed, 0.5), "select_gain": gain},
  ]
  files.write_json_lines(folder / "results.jsonl", rows)


def test_choice_of_each_task(cells, capsys):
  """Noise is no choice: under each kind, one is made of its own epochs."""
  kinds, epochs = ("pair", "symmetric"), (30, 60)
  where = f"--workdir={cells.root}"
  go(cells, f"noise.kind={','.join(kinds)}", "train.epochs=30,60", num_seeds=1)
  for kind in kinds:
    for number in epochs:
      leave_choice(
        cells, f"noise.kind={kind}/train.epochs={number}",
        final=0.9 if kind == "pair" else 0.5, gain=number / 1000,
      )  # fmt: skip
  code, out, err = kfkd(capsys, where, "--only-table", "--choose=kf")
  assert (code, err) == (0, "")
  _, pair, symmetric = out.split("### chosen on the selecting points, ")
  assert pair.startswith("noise.kind=pair\n")
  assert symmetric.startswith("noise.kind=symmetric\n")
  assert "| final | train.epochs=30 | 90.00 | 93.00 | 50.00 | 50.00 |" in pair
  assert "| kf | train.epochs=60 | 50.00 | 56.00 | 50.00 | 50.00 |" in symmetric


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--choose=fk"], "--choose='fk' is no method; there are best_epoch"),
    (["--choose=final"], "name one such as mixture"),
    (["--choose=swa"], "in train.epochs=30/seed-0; there are final, kf"),
  ],
)
def test_what_cannot_choose_is_refused(cells, capsys, arguments, message):
  go(cells, "train.epochs=30,60", num_seeds=1)
  for number in (30, 60):
    leave_choice(cells, f"train.epochs={number}", final=0.5, gain=0.1)
  where = f"--workdir={cells.root}"
  code, _, err = kfkd(capsys, where, "--only-table", *arguments)
  assert code == 2
  assert message in err and err.count("\n") == 1


def test_nothing_finished_chooses_nothing(cells, capsys):
  cells.failing = {f"train.epochs={n}/seed-0": ValueError("no") for n in (1, 2)}
  where = f"--workdir={cells.root}"
  grid = "--grid=train.epochs=1,2"
  code, _, err = kfkd(capsys, where, grid, "--seeds=1", "--choose=kf")
  assert code == 2
  assert "train.epochs=2/seed-0 failed: no" in err
  assert err.splitlines()[-1].endswith("is finished yet")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--seeds=0"], "--seeds must be at least 1"),
    (["--grid=noise.rates=1"], "did you mean 'noise.rate'"),
    (["--only-table"], "holds no sweep"),
    (["--only-table", "--choose=kf"], "holds no sweep"),
    (["--choose=kf"], "varies the seed alone"),
    (["--choose=kf", "--grid=noise.rate=0,0.4"], "varies noise.rate alone"),
    (["--choose=fk", "--grid=train.epochs=1,2"], "'fk' is no method"),
  ],
)
def test_mistakes_are_one_line_and_leave_nothing(
  cells, capsys, arguments, message
):
  code, _, err = kfkd(capsys, f"--workdir={cells.root}", *arguments)
  assert code == 2
  assert message in err and err.count("\n") == 1
  assert not list(cells.root.iterdir())


def test_arguments_of_a_sweep_go_with_it_alone(capsys):
  for argument in (
    "--grid=a=1",
    "--seeds=2",
    "--only-table",
    "--against=kf",
    "--choose=kf",
  ):
    assert cli.main(["run", argument]) == 2
    name = argument.split("=")[0]
    assert f"{name} goes with sweep" in capsys.readouterr().err


COMMAND = """
import sys, time
sys.path.insert(0, sys.argv[2])
import test_sweep
from etils import epath
from kfkd_jax import stages
cells = test_sweep.Cells(epath.Path(sys.argv[1]))
def log(name):
  with open(f"{sys.argv[1]}/log", "a") as f:
    f.write(name + chr(10))
  if sys.argv[3] == "dies":
    print("stuck", flush=True)
    time.sleep(600)
  time.sleep(0.2)
cells.on_run = log
stages.run, stages.is_up_to_date = cells.run, cells.is_up_to_date
print("ready", flush=True)
sys.stdin.readline()
outcome = test_sweep.go(cells, "noise.rate=0.1,0.2,0.3", num_seeds=4)
print(len(cells.ran), len(outcome.busy), len(outcome.failed))
"""


@pytest.mark.slow
def test_commands_share_the_work_and_take_over_from_the_dead(tmp_path):
  here = epath.Path(__file__).parent
  commands = [
    subprocess.Popen(
      [sys.executable, "-c", COMMAND, str(tmp_path), str(here), kind],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for kind in ("lives", "lives", "dies")
  ]
  for command in commands:
    assert command.stdout.readline() == "ready\n"

  def start(command):
    command.stdin.write("\n")
    command.stdin.flush()

  dying = commands.pop()
  start(dying)
  assert "stuck\n" in iter(dying.stdout.readline, "")
  for command in commands:
    start(command)
  while len((tmp_path / "log").read_text().split()) < 4:
    time.sleep(0.05)
  dying.send_signal(signal.SIGKILL)
  dying.communicate()
  said = [command.communicate()[0].splitlines()[-1] for command in commands]
  counts = [[int(word) for word in line.split()] for line in said]
  assert all(ran >= 1 for ran, _, _ in counts)
  assert all(failed == 0 for _, _, failed in counts)
  ran = (tmp_path / "log").read_text().split()
  assert len(set(ran)) == 12  # every cell, and but one of them once
  assert len(ran) == 13
