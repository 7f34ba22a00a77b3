"""Notebooks are clean, run from top to bottom, and show what they say."""

import ast
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import sys

import nbclient
import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from test_site import program

from kfkd_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
PATHS = {path.stem: path for path in sorted((ROOT / "colabs").glob("*.ipynb"))}
NAMES = [
  "bring_your_own_checkpoints",
  "find_wrong_labels",
  "paper_tables",
  "quickstart",
  "theory",
  "tpu",
]


def read(name):
  return nbformat.read(PATHS[name], as_version=4)


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_tested():
  assert list(PATHS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_committed_as_run_from_top_to_bottom(name):
  """Stored by `.ci/notebooks`, without anything of the machine that ran it."""
  notebook, text = read(name), PATHS[name].read_text()
  nbformat.validate(notebook)
  cells = code_cells(notebook)
  assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
  assert "RESULTS {" in cells[-1].outputs[-1].text
  assert all(o.get("name") != "stderr" for c in cells for o in c.outputs)
  for cell in notebook.cells:
    assert set(cell.metadata) <= {"tags"}, "an editor's notes"
    assert cell.source.strip()
  assert len(text) < 500_000
  told = "".join(re.sub(r'"image/png": "[^"]*"', "", text))
  strange = re.findall(r"/(?:tmp|root|home|work|Users)/\S*|\w*Warning\b", told)
  assert strange == []


@pytest.mark.parametrize("name", NAMES)
def test_cells_parse_and_begin_with_the_installation(name):
  cells = code_cells(read(name))
  for cell in cells:
    ast.parse(TransformerManager().transform_cell(cell.source))
  assert cells[0].source == code_cells(read(NAMES[0]))[0].source
  assert cells[1].metadata["tags"] == ["parameters"]
  assert "KFKD_SMOKE" in cells[1].source
  assert cells[-1].source.startswith('print("RESULTS"') or (
    "print(\"RESULTS\"" in cells[-1].source
  )  # fmt: skip


def install(monkeypatch, source, spec=None):
  """What the first cell installs where `spec` is all that is found."""
  if source is None:
    monkeypatch.delenv("KFKD_SOURCE", raising=False)
  else:
    monkeypatch.setenv("KFKD_SOURCE", source)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
  asked = []

  class Shell:
    def run_line_magic(self, magic, line):
      asked.append((magic, line.format(**known)))

  known = {"get_ipython": Shell}
  (cell, *_) = code_cells(read("quickstart"))
  exec(TransformerManager().transform_cell(cell.source), known)
  return asked


def test_the_first_cell_installs_from_where_the_reader_says(
  monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / "kfkd_jax"  # a checkout, which pip takes for a name
  folder.mkdir()
  checkout = importlib.machinery.ModuleSpec("kfkd_jax", None, is_package=True)

  def installed(address):
    return [("pip", f'install -q "kfkd-jax[run] @ {address}"')]

  here = folder.as_uri()
  assert install(monkeypatch, "kfkd_jax", checkout) == installed(here)
  address = "git+https://example.org/kfkd_jax"
  assert install(monkeypatch, address) == installed(address)
  (unsaid,) = install(monkeypatch, None)
  assert "@ git+https://github.com/" in unsaid[1]
  there = importlib.machinery.ModuleSpec("kfkd_jax", None, origin="here")
  assert install(monkeypatch, None, there) == []


@pytest.mark.parametrize(
  "source", ["", "kfkd-jax", "kfkd_jax[tpu]", "http://example.org/a.whl"]
)
def test_the_first_cell_installs_no_bare_name(monkeypatch, tmp_path, source):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"^KFKD_SOURCE=.* a checkout") as e:
    install(monkeypatch, source)
  assert "\n" not in str(e.value)


def test_nothing_tells_to_install_us_from_an_index():
  tracked = ["", "colabs", "configs", "configs/paper", ".github", ".ci"]
  told = [
    f"{path.relative_to(ROOT)}: {line.strip()}"
    for folder in tracked
    for path in (ROOT / folder).iterdir()
    if path.is_file()
    for line in path.read_text("utf-8", "ignore").splitlines()
    if re.search(
      r"""install\b.*[ '"]kfkd[-_]jax(?!(\[\w+\])? @ )""", line, re.I
    )
    or (path.name.startswith("requirements") and line.startswith("kfkd"))
  ]
  assert told == []


@pytest.mark.parametrize("name", NAMES)
def test_begins_with_one_title_and_stays_readable(name):
  cells = read(name).cells
  assert cells[0].cell_type == "markdown"
  headings = [
    line
    for cell in cells
    if cell.cell_type == "markdown"
    for line in cell.source.splitlines()
    if line.startswith("# ")
  ]
  assert len(headings) == 1 and cells[0].source.startswith(headings[0])
  longest = max(len(c.source.splitlines()) for c in code_cells(read(name)))
  assert longest <= 45


def test_configurations_that_notebooks_name_load():
  sources = "\n".join(path.read_text() for path in PATHS.values())
  specs = set(re.findall(r"configs/[\w/]+\.py(?::[\w=.,]+)?", sources))
  assert len(specs) >= 5
  for spec in specs:
    config_lib.validate(config_lib.load_config(f"{ROOT}/{spec}"))


def test_keys_that_notebooks_name_exist():
  prose = "\n".join(
    cell.source
    for name in NAMES
    for cell in read(name).cells
    if cell.cell_type == "markdown"
  )
  sections = "train|model|noise|optim|compare|distill|history|fuse"
  keys = set(re.findall(rf"`((?:{sections})\.\w+)`", prose))
  assert keys
  for key in keys:
    config_lib.get(config_lib.default_config(), key)


class Run:
  """What came out of a notebook that was run from top to bottom."""

  def __init__(self, notebook):
    outputs = [o for cell in code_cells(notebook) for o in cell.outputs]
    self.text = "".join(o.text for o in outputs if o.get("name") == "stdout")
    self.stderr = "".join(o.text for o in outputs if o.get("name") == "stderr")
    shown = [o.data for o in outputs if "data" in o]
    self.num_figures = sum("image/png" in data for data in shown)
    self.tables = [d["text/markdown"] for d in shown if "text/markdown" in d]
    (line,) = re.findall(r"^RESULTS (.*)$", self.text, re.M)
    self.results = json.loads(line)


def run(name, folder):
  """Runs a notebook in its short form, in a process and a folder of its own."""
  notebook = read(name)
  bin_folder = os.path.dirname(sys.executable)
  environment = {
    **os.environ,
    "KFKD_SMOKE": "1",
    "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
    "PYTHONPATH": os.pathsep.join(
      [str(ROOT), os.environ.get("PYTHONPATH", "")]
    ),
  }
  environment.pop("XLA_FLAGS", None)  # the tests' eight fake devices
  environment.pop("PYTHONWARNINGS", None)  # what a reader would see
  client = nbclient.NotebookClient(
    notebook,
    kernel_name="python3",
    timeout=600,
    resources={"metadata": {"path": str(folder)}},
  )
  client.execute(env=environment)
  found = Run(notebook)
  assert "Traceback" not in found.text + found.stderr
  assert "Warning" not in found.stderr, found.stderr
  return found


def test_what_is_stored_says_nothing_of_the_machine(tmp_path):
  lines = [
    "import pathlib, sys, warnings",
    "print('half', end='\\r')",
    "print('done', pathlib.Path('found.txt').resolve())",
    "warnings.warn('not for a reader')",
  ]
  cells = [nbformat.v4.new_code_cell("\n".join(lines))]
  path = tmp_path / "told.ipynb"
  nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
  (cell,) = program("notebooks").executed(path).cells
  assert cell.execution_count == 1
  assert set(cell.metadata) == set()
  assert [output.text for output in cell.outputs] == ["done found.txt\n"]


def test_a_cell_that_fails_fails_the_test(tmp_path, monkeypatch):
  broken = tmp_path / "broken.ipynb"
  cells = [nbformat.v4.new_code_cell("assert False, 'as it should'")]
  nbformat.write(nbformat.v4.new_notebook(cells=cells), broken)
  monkeypatch.setitem(PATHS, "broken", broken)
  with pytest.raises(nbclient.exceptions.CellExecutionError, match="as it"):
    run("broken", tmp_path)


@pytest.mark.slow
def test_quickstart(tmp_path):
  found = run("quickstart", tmp_path)
  results = found.results
  np.testing.assert_allclose(results["by_hand"], [1 / 6, 1 / 6, 0, 0])
  assert results["max_forget"] > 0.05
  assert all(gain >= 0 for gain in results["select_gain"].values())
  assert set(results["accuracy"]) >= {"final", "best_epoch", "kf", "kf_kd"}
  assert all(0.1 < a <= 1 for a in results["accuracy"].values())
  assert found.num_figures == 8
  (table,) = found.tables
  assert "Knowledge Fusion" in table
  page = tmp_path / "quickstart-workdir" / "report" / "index.html"
  assert page.stat().st_size > 10_000


@pytest.mark.slow
def test_bring_your_own_checkpoints(tmp_path):
  found = run("bring_your_own_checkpoints", tmp_path)
  results = found.results
  assert results["max_forget"] > 0.05
  selecting = results["select_accuracy"]
  assert selecting["kf"] >= selecting["final"]
  assert results["same_weights"] < 1e-6
  np.testing.assert_allclose(results["nnx_rows_sum"], 1, atol=1e-5)
  assert results["accuracy"]["kf_kd"] > 0.5
  assert found.num_figures == 2
  assert "written to foreign/diagnosis.json" in found.text
  assert "written to foreign/fusion.json" in found.text


@pytest.mark.slow
def test_find_wrong_labels(tmp_path):
  found = run("find_wrong_labels", tmp_path)
  results = found.results
  assert results["precision"] > 0.5
  assert results["auroc"]["ours"] > results["auroc"]["last loss"]
  assert results["suspects_are_accused"]
  assert set(results["accuracy"]) == {"as given", "drop", "relabel"}
  for row in results["accuracy"].values():
    assert set(row) >= {"final", "kf", "mixture", "kf_kd"}
    assert all(0.1 < accuracy <= 1 for accuracy in row.values())
  assert found.num_figures == 2
  assert len(found.tables) == 2
  assert "--config.noise.corrections=find-workdir/audit/audit.csv" in found.text
  assert (tmp_path / "mine" / "index.html").stat().st_size > 10_000


@pytest.mark.slow
def test_theory(tmp_path):
  found = run("theory", tmp_path)
  results = found.results
  assert results["best_round"] == 3
  assert results["risk_error"] < 0.02
  assert results["alive_rounds"] >= results["sure_rounds"] > 1
  assert results["agreement"] > 0.98
  assert results["forgotten"] > 100
  assert results["pull_correlation"] > 0.4
  best, peak, end = results["descent"]
  assert best < end < peak
  assert results["recovered"] < 0.5
  assert results["clean_in_tenth"] > 2 * results["noise_in_tenth"]
  assert results["largest_gap"] > 0.3
  assert results["air_error"] < 1e-12
  assert found.num_figures == 8


@pytest.mark.slow
def test_tpu(tmp_path):
  found = run("tpu", tmp_path)
  results = found.results
  assert results["devices"] == 8
  assert results["toy_difference"] < 1e-6
  assert results["loss_spread"][0] < 1e-3
  activations = results["activations"]  # on 1, 2, 4 and 8 devices
  halves = np.divide(activations[:-1], activations[1:])
  np.testing.assert_allclose(halves, 2, rtol=0.05)
  assert results["traces"] == 1
  assert found.num_figures == 1
  assert len(found.tables) == 2


@pytest.mark.slow
def test_paper_tables(tmp_path):
  found = run("paper_tables", tmp_path)
  results = found.results
  np.testing.assert_allclose(results["paper_kf_gain"], [7.1, 12.7, 7.4, 10.1])
  assert set(results["ours"]) == {"digits, pair 40", "digits, symmetric 40"}
  for methods in results["ours"].values():
    assert methods["final"][1] == 0
    assert set(methods) >= {"horizontal", "fixed_jumps", "kf", "kf_kd", "swa"}
    assert all(0.05 < accuracy <= 1 for accuracy, _ in methods.values())
  assert found.num_figures == 2
  assert len(found.tables) == 2
  beside = found.tables[0]
  assert "| Knowledge Fusion | +12.7 | +10.1 | - | - |" in beside
