"""The library alone needs less than the command, which says what is missing."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
from test_architecture import (
  LIGHT,
  MODULES,
  PACKAGE,
  ROOMS,
  ROOT,
  imported,
  room_of,
)

from kfkd_jax import cli, extras, relabelling

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = importlib.metadata.packages_distributions()


def normal(requirement):
  return re.split(r"[^\w.-]", requirement)[0].replace("_", "-").lower()


def brings(requirements):
  """The names under which these requirements are imported."""
  names = {normal(requirement) for requirement in requirements}
  return {
    module
    for module, sources in INSTALLED.items()
    if names & {normal(source) for source in sources}
  }


MISSING = "ml_collections is not installed: pip install 'kfkd-jax[run]'"
BASE, RUN = brings(PROJECT["dependencies"]), brings(EXTRAS["run"])
REQUIRES = [
  *PROJECT["dependencies"],
  *(f'{need}; extra == "{x}"' for x, needs in EXTRAS.items() for need in needs),
]


@pytest.fixture(autouse=True)
def _as_declared(monkeypatch):
  """The requirements of this checkout, whatever was installed before it."""
  monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)


def test_all_of_the_extra_is_here_and_refused_below():
  missing = {normal(x) for x in EXTRAS["run"]} - {
    normal(source) for module in RUN for source in INSTALLED[module]
  }
  assert not missing
  assert not BASE & RUN


@pytest.mark.parametrize(
  "path",
  [p for p in MODULES if room_of(p) in LIGHT],
  ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_light_rooms_need_nothing_of_the_extra(path):
  """But under `extras.named`, in functions that cannot do without it."""
  for name, is_named in imported(path):
    package, room, *_ = [*name.split("."), ""]
    heavy = package in RUN or (
      package == "kfkd_jax" and room in ROOMS and room not in LIGHT
    )
    assert is_named or not heavy, f"{path.name} imports {name}"


def blocked(code, *arguments):
  """What a process says to which the extra's packages are not there."""
  refusing = f"""
import importlib.metadata
import sys


class Refusing:
  def find_spec(self, name, path=None, target=None):
    if name in {sorted(RUN)}:
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refusing())
importlib.metadata.requires = lambda name: {REQUIRES}
"""
  return subprocess.run(
    [sys.executable, "-c", refusing + code, *map(str, arguments)],
    check=False,
    capture_output=True,
    text=True,
  )


# Every function of the door has an example, which another test sees to.
DOOR = """
import doctest, importlib, inspect
import numpy as np
import kfkd_jax
from kfkd_jax import merging

folder, *light = sys.argv[1:]
for name in light:
  importlib.import_module(name)
public = [getattr(kfkd_jax, name) for name in kfkd_jax.__all__]
for module in set(map(inspect.getmodule, public)):
  failed, tried = doctest.testmod(module)
  print(module.__name__, tried)
  assert not failed

for step in (1, 2):
  np.savez(f"{folder}/net-{step}.npz", w=np.full(3, step, np.float32))
found, output = merging.find([folder]), f"{folder}/all.npz"
weights = merging.weights_for("uniform", 2)
merging.write(found, weights, output, shape="uniform")
np.testing.assert_array_equal(np.load(output)["w"], 1.5)

try:
  kfkd_jax.Recorder(folder, [0], lambda net: net).report("page")
except ImportError as error:
  print(error)
"""


def test_the_door_works_without_the_extra_and_a_page_says_what_it_needs(
  tmp_path,
):
  light = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in MODULES
    if room_of(path) in LIGHT and path.name != "__init__.py"
  ]
  done = blocked(DOOR, tmp_path, *light)
  assert done.returncode == 0, done.stdout + done.stderr
  *tried, last = done.stdout.splitlines()
  assert len(tried) > 10 and sum(int(line.split()[1]) for line in tried) > 50
  assert last == MISSING


COMMANDS = """
from kfkd_jax import cli

for words in (["run"], ["study", "--help"]):
  try:
    print(cli.main(words))
  except SystemExit as leaving:
    print(leaving.code)
"""


def test_the_command_says_in_one_line_what_to_install():
  done = blocked(COMMANDS)
  assert done.stderr == f"kfkd: {MISSING}\n" * 2
  assert done.stdout == "2\n2\n"


def test_a_function_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn", None)
  line = r"^sklearn is not installed: pip install 'kfkd-jax\[run\]'$"
  for function in (
    relabelling.clean_probabilities,
    relabelling.neighbour_graph,
  ):
    with pytest.raises(extras.MissingExtraError, match=line):
      function([[0.5], [1.0]])


@pytest.mark.parametrize("name", ["no_such_package", "matplotlib.part", "jax"])
def test_what_no_extra_brings_stays_a_fault(name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(ModuleNotFoundError) as caught, extras.named():
    importlib.import_module(name)
  assert caught.type is ModuleNotFoundError
  monkeypatch.setattr(
    cli, "_dispatch", lambda *_: importlib.import_module(name)
  )
  with pytest.raises(ModuleNotFoundError, match=name):
    cli.main(["run"])


def test_a_library_that_says_in_its_own_words_what_it_lacks():
  def opened():
    try:
      raise ModuleNotFoundError("No module named 'gcsfs'", name="gcsfs")
    except ModuleNotFoundError as error:
      raise ImportError("Please install gcsfs to use a bucket") from error

  line = r"gcsfs is not installed: pip install 'kfkd-jax\[gcs\]'"
  with pytest.raises(extras.MissingExtraError, match=line), extras.named():
    opened()


def test_every_package_of_the_extra_is_known_by_the_name_of_its_import():
  used = {name.split(".")[0] for path in MODULES for name, _ in imported(path)}
  assert len(used & RUN) > 10
  for name in used & RUN:
    assert extras._extra_of(name) == "run"


def test_without_metadata_the_fault_is_told_as_it_is(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "requires", missing)
  monkeypatch.setitem(sys.modules, "sklearn", None)
  with pytest.raises(ModuleNotFoundError, match="sklearn") as caught:
    relabelling.neighbour_graph([[0.5], [1.0]])
  assert caught.type is ModuleNotFoundError
