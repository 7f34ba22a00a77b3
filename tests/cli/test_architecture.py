"""A module imports only rooms above its own; no TensorFlow on any path."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "kfkd_jax"

# Top to bottom: a room may import those before it, and its own parts.
ROOMS = (
  "extras",
  "stacks",
  "label_noise",
  "metrics",
  "statistics",
  "forgetting",
  "fusion",
  "losses",
  "calibration",
  "sets",
  "relabelling",
  "auditing",
  "history",
  "averaging",
  "theory",
  "lock",
  "files",
  "signals",
  "models",
  "data",
  "processes",
  "parallel",
  "optim",
  "checkpoints",
  "answers",
  "predictions",
  "merging",
  "training",
  "catalogue",
  "published",
  "plots",
  "config",
  "run",
  "methods",
  "report",
  "export",
  "stages",
  "recording",
  "lab",
  "options",
  "cli",
)
CORE = ROOMS[: ROOMS.index("lock")]
# What `import kfkd_jax` may need; the other packages come with the extra `run`.
LIGHT = (
  *CORE,
  "lock",
  "files",
  "signals",
  "processes",
  "parallel",
  "checkpoints",
  "answers",
  "predictions",
  "merging",
  "recording",
)


def room_of(path):
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
  """`(name, whether under extras.named)` of all that a module imports."""

  def below(node, is_named):
    if isinstance(node, ast.With):
      is_named |= "extras.named()" in map(ast.unparse, node.items)
    elif isinstance(node, ast.Import):
      yield from ((alias.name, is_named) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module, is_named
      for alias in node.names:
        yield f"{node.module}.{alias.name}", is_named
    for child in ast.iter_child_nodes(node):
      yield from below(child, is_named)

  return below(ast.parse(path.read_text()), False)


def imported_names(path):
  return {name for name, _ in imported(path)}


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
MODULES += sorted(p for p in PACKAGE.rglob("*/__init__.py"))


@pytest.mark.parametrize(
  "path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_only_rooms_above(path):
  room = room_of(path)
  assert room in ROOMS, f"{room} has no place in the picture of the rooms"
  used = {
    name.split(".")[1]
    for name in imported_names(path)
    if name.startswith("kfkd_jax.")
  } & set(ROOMS)
  below = [u for u in used if ROOMS.index(u) > ROOMS.index(room)]
  assert not below, f"{path.name} imports {below}, below {room}"


def needs():
  """What each module imports of the package, by dotted names."""
  names = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(
      ".__init__"
    ): p
    for p in MODULES
  }
  found = {}
  for name, path in names.items():
    used = (imported_names(path) & names.keys()) - {name}
    # `from kfkd_jax.training import step` names the package and the module.
    found[name] = {
      u for u in used if not any(v.startswith(u + ".") for v in used)
    }
  return found


PACKAGES = sorted(
  {".".join(p.parent.relative_to(ROOT).parts) for p in MODULES} - {"kfkd_jax"}
)


@pytest.mark.parametrize("package", PACKAGES)
def test_inside_a_room_too_what_stands_above_is_clear(package):
  """No circle among the files and folders of it, not for types either."""
  depth = package.count(".") + 2

  def part(name):
    return ".".join(name.split(".")[:depth])

  graph = {}
  for name, used in needs().items():
    if part(name).startswith(package):
      inside = {part(u) for u in used if u.startswith(package)}
      graph.setdefault(part(name), set()).update(inside - {part(name)})
  order = [*graphlib.TopologicalSorter(graph).static_order()]  # no circle
  for name, used in graph.items():
    assert all(order.index(u) < order.index(name) for u in used)


@pytest.mark.parametrize(
  "path",
  [p for p in MODULES if room_of(p) in CORE],
  ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_core_knows_no_files_devices_or_configs(path):
  outside = {name.split(".")[0] for name in imported_names(path)}
  assert not outside & {
    "flax",
    "orbax",
    "etils",
    "ml_collections",
    "tensorflow_datasets",
    "os",
    "pathlib",
  }


def test_only_checkpoints_imports_orbax():
  users = {
    room_of(p)
    for p in MODULES
    if any(name.startswith("orbax") for name in imported_names(p))
  }
  assert users == {"checkpoints"}


def test_importing_the_package_touches_no_device_and_no_tensorflow():
  code = (
    "import sys, kfkd_jax, kfkd_jax.cli, kfkd_jax.stages\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge._backends, 'a device was touched'\n"
    "assert 'tensorflow' not in sys.modules\n"
    "assert 'matplotlib' not in sys.modules  # 0.7 s only for pages\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], check=False, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
NETWORK = {"socket", "urllib", "requests", "http", "httpx", "aiohttp", "ftplib"}


@pytest.mark.parametrize(
  "path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_nothing_is_unpickled_and_nothing_calls_home(path):
  outside = {name.split(".")[0] for name in imported_names(path)}
  assert not outside & UNSAFE
  assert "allow_pickle=True" not in path.read_text()
  if room_of(path) not in ("data", "lock"):  # downloads; the host's name
    assert not outside & NETWORK
