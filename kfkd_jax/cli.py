"""The `kfkd` command."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from kfkd_jax import extras, signals
from kfkd_jax import options as options_lib

_FAILED = 1
_USER_ERROR = 2
_DIVERGED = 3
_DISCONNECTED = 4
_NO_MEMORY = "too little memory, or a limit on it or on threads"
_INTERRUPTED = "interrupted; run again to continue"


def program() -> NoReturn:
  """Runs the command line as a process of its own, and leaves it."""
  sys.excepthook = _report_exception  # threads may print after `main`
  # Nothing is begun yet, and libraries that are interrupted while they load
  # print where.
  for number in signals.EXIT_CODES:
    signal.signal(number, _leave_at_once)
  _parse(sys.argv[1:])  # help and an unknown stage need no JAX
  import jax  # noqa: F401

  try:
    code = main()
  except SystemExit as leaving:
    code = int(leaving.code or 0)
  except BaseException:
    traceback.print_exc()
    code = _FAILED
  # Threads of a save that failed may wait for each other for ever.
  others = [t for t in threading.enumerate() if t != threading.main_thread()]
  if code and any(not t.daemon for t in others):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  try:
    with extras.named():  # the help of a study knows them all
      return options_lib.parse(argv)
  except extras.MissingExtraError as error:
    raise SystemExit(_end(_USER_ERROR, str(error))) from error


def _leave_at_once(number: int, frame: object) -> NoReturn:
  code = signals.EXIT_CODES[signal.Signals(number)]
  if number == signal.SIGINT:
    os.write(2, f"kfkd: {_INTERRUPTED}\n".encode())
  os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Returns:
    The exit code: 0, 1 where a sanity check or a cell of a sweep failed, 2 for
    what the user can correct, 3 where training left the finite numbers, 4 where
    one of several processes is gone, 130 after Ctrl-C. SIGTERM exits with 143.
  """
  with signals.Orders(f"kfkd: {_INTERRUPTED}") as orders:
    try:
      try:
        code = _run(sys.argv[1:] if argv is None else list(argv), orders)
      finally:
        orders.settle()
      if orders.code is None:
        return code
    except BaseException:  # whatever became of what the signal raised
      if orders.code is None:
        raise
    if orders.code == signals.EXIT_CODES[signal.SIGINT]:
      return _end(orders.code, _INTERRUPTED)
    _leave(orders.code, "it was told to leave")
    raise SystemExit(orders.code)


def _run(argv: Sequence[str], orders: signals.Orders) -> int:
  options, rest = _parse(argv)
  try:
    with _restored(), extras.named():  # loads JAX, which takes its time
      overrides = options_lib.check(options, rest)
      return _dispatch(options, overrides, orders)
  except SystemExit as leaving:
    if orders.code is None:
      _leave(int(leaving.code or 0), "it was told to leave")
    raise
  except (
    ValueError,
    OSError,
    FloatingPointError,
    extras.MissingExtraError,
  ) as error:
    if options.debug or orders.code is not None:
      raise
    diverged = isinstance(error, FloatingPointError)
    line = f"{_one_line(error)}{_advice(error, options.workdir)}"
    return _end(_DIVERGED if diverged else _USER_ERROR, line)
  except (MemoryError, RuntimeError) as error:
    if options.debug or orders.code is not None:
      raise
    if isinstance(error, MemoryError) or "start new thread" in str(error):
      return _end(_USER_ERROR, f"{_NO_MEMORY} ({_one_line(error)})")
    if options.multihost is None:
      raise
    return _lost(
      f"this process failed, or another is gone ({_one_line(error)[:200]})"
    )


def _end(code: int, line: str) -> int:
  """Prints why the program ends; returns the exit code."""
  _leave(code, line, f"kfkd: {line}")
  print(f"kfkd: {line}", file=sys.stderr)
  return code


def _lost(what: str) -> int:
  """Ends this process because another one has."""
  return _end(_DISCONNECTED, f"{what}; start all of them again to continue")


def _leave(code: int, why: str, line: str = "") -> None:
  """Ends the process here and now, if it is one of several."""
  if "jax" in sys.modules:
    from kfkd_jax import processes

    processes.leave(code, why, line)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
  """Puts back what the command changes in the process it runs in."""
  import jax

  hook, sys.excepthook = sys.excepthook, _report_exception
  values = {name: getattr(jax.config, name) for name in _JAX_KEYS}
  try:
    yield
  finally:
    sys.excepthook = hook
    for name, value in values.items():
      jax.config.update(name, value)


def _dispatch(options, overrides, orders) -> int:
  from etils import epath

  from kfkd_jax import config as config_lib
  from kfkd_jax import processes

  if options.stage == "report" and options.inputs:
    from kfkd_jax.report import overview_page as overview

    print(overview.run(options.inputs, options.output))
    return 0
  if options.stage == "help":
    print(config_lib.explain(options.inputs))
    return 0
  if options.stage == "merge":
    print(_merge(options))
    return 0
  workdir = epath.Path(options.workdir)
  if options.stage == "clean":
    from kfkd_jax.run import keeping

    print(keeping.clean(workdir, force=bool(options.force)))
    return 0
  if options.stage == "push":
    from kfkd_jax.export import hub

    (repo,) = options.inputs
    print(hub.push(repo, workdir, private=bool(options.private)))
    return 0
  if options.stage == "study":
    from kfkd_jax.lab import studies

    overrides = [*studies.find(options.inputs[0]).changes, *overrides]
    config = config_lib.read(options.config, overrides)
  elif options.predictions is not None:  # no run's configuration is theirs
    config = config_lib.read(options.config, overrides)
  else:
    saved = None if options.config else _to_continue(options, workdir)
    config = config_lib.read(options.config, overrides, saved=saved)
  _connect(options.multihost)
  orders.listen()  # connecting takes SIGTERM
  code, line = _work(options, config, workdir)
  if line and processes.is_main_process():
    print(line)
  return code


def _to_continue(options, workdir):
  """The configuration of the working directory, which is said to be used."""
  if options.stage in ("predict", "bench") or options.predictions is not None:
    saved = workdir / "config.json"  # what they do loses nothing
    return saved if saved.exists() else None
  from kfkd_jax import stages
  from kfkd_jax.lab import sweep
  from kfkd_jax.run import keeping

  of = sweep if options.stage == "sweep" else keeping
  saved = of.configuration(workdir)
  first = options.multihost is None or options.multihost.endswith(",0")
  if (
    saved is not None and first and options.stage in {**stages.STAGES, "run": 0}
  ):
    print(f"continuing with {saved}")
  return saved


def _work(options, config, workdir) -> tuple[int, str]:
  """Does what was asked for; returns the exit code and what to print."""
  from kfkd_jax import processes

  if options.predictions is not None:
    return 0, processes.on_main(_foreign, options, config)
  _set_up_jax(config)
  from kfkd_jax import stages

  if options.stage == "bench":
    from kfkd_jax.lab import bench

    return 0, processes.on_main(bench.run, config, workdir)
  if options.stage == "predict":
    from kfkd_jax.export import predict

    output = options.output or "probs.npz"
    return 0, processes.on_main(
      predict.run, options.model, options.inputs, output, workdir
    )
  if options.stage in ("sweep", "study"):
    return _sweep(options, config, workdir)
  if options.stage == "sanity":
    from kfkd_jax.lab import sanity

    table, passed = processes.on_main(sanity.run, config, workdir)
    return 0 if passed else _FAILED, table
  if options.stage == "audit" and options.output is not None:
    return 0, processes.on_main(_audit_elsewhere, options, config, workdir)
  if options.stage != "run":
    stages.run_stage(config, workdir, options.stage, redo=bool(options.redo))
    said = [_check_traced(options, workdir)]
    if options.stage in ("compare", "report"):
      said.append(_outcome(options, config, workdir))
    return 0, "\n".join(filter(None, said))
  ran = stages.run(config, workdir, redo=bool(options.redo))
  page = workdir / "report" / "index.html"
  line = f"The report is at {page}" if ran else f"Nothing to do; see {page}"
  said = [
    _check_traced(options, workdir),
    _outcome(options, config, workdir),
    line,
  ]
  return 0, "\n".join(filter(None, said))


def _outcome(options, config, workdir) -> str:
  from kfkd_jax import processes
  from kfkd_jax.run.workspace import Workspace
  from kfkd_jax.stages import compare

  space, whole = Workspace(config, workdir), bool(options.all)
  return processes.on_main(lambda: compare.outcome(space, whole=whole))


def _audit_elsewhere(options, config, workdir) -> str:
  """An audit of a working directory, written outside of it."""
  from kfkd_jax import stages
  from kfkd_jax.run.workspace import Workspace
  from kfkd_jax.stages import audit

  folder, space = _audit_output(options), Workspace(config, workdir)
  with stages.held(workdir):
    stages.check_ran(space, "audit", "train")
    found, *rest = audit.write_of_run(space, folder)
  return "\n".join([found, f"written to {folder}", *rest])


def _sweep(options, config, workdir) -> tuple[int, str]:
  """The table of cells, and what a method would choose of them."""
  from kfkd_jax.lab import sweep

  against, grid = options.against or "final", options.grid or ()
  if options.choose is not None and not options.only_table:
    sweep.check_choice(config, workdir, options.choose, grid)
  code, table = _swept(options, config, workdir, against, grid)
  if options.choose is not None:
    table += f"\n\n{sweep.choice(config, workdir, options.choose)}"
  return code, table


def _swept(options, config, workdir, against, grid) -> tuple[int, str]:
  """Runs cells, or only reads them; lists those that failed."""
  from kfkd_jax.lab import studies, sweep

  if options.only_table:
    return 0, sweep.read_table(config, workdir, against=against)
  if options.stage == "study":
    (name,) = options.inputs
    outcome = studies.run(
      config, name, workdir, num_seeds=options.seeds, grid=grid
    )
  else:
    outcome = sweep.run(
      config, workdir, num_seeds=options.seeds, grid=grid, against=against
    )
  for name, holder in outcome.busy.items():
    print(f"kfkd: {name} is under way elsewhere: {holder}", file=sys.stderr)
  for name, error in outcome.failed.items():
    print(f"kfkd: {name} failed: {error}", file=sys.stderr)
  return _FAILED if outcome.failed else 0, outcome.table


def _check_traced(options, workdir) -> str:
  """Says so where `--profile` came too late."""
  folder = workdir / "runs" / "teacher" / "profile"
  if not options.profile or folder.exists():
    return ""
  return (
    f"no trace in {folder}: only steps of the train stage are traced, and it "
    "had none to make; take a new --workdir"
  )


def _merge(options) -> str:
  """One network of checkpoints that anybody saved."""
  from kfkd_jax import merging

  shape = options.weights or "uniform"
  found = merging.find(options.inputs)
  weights = merging.weights_for(
    shape, len(found), last=options.last, decay=options.decay
  )
  card = merging.write(found, weights, options.output, shape=shape)
  return "\n".join([
    *merging.notes(found),
    merging.summary(found, weights, shape),
    f"written to {options.output}; {card} says how",
  ])  # fmt: skip


def _foreign(options, config) -> str:
  """The stages that go by what somebody's checkpoints said."""
  from etils import epath

  source, stage = epath.Path(options.predictions), options.stage
  if stage == "audit":
    from kfkd_jax.stages import audit

    folder = _audit_output(options)
    line = audit.write(audit.of_file(source), folder, config)
    return f"{line}\nwritten to {folder}"
  from kfkd_jax.stages import foreign

  if stage == "report":
    folder = _foreign_output(options, "report")
    folder = folder if options.output is None else folder.parent
    test = None if options.test is None else epath.Path(options.test)
    said = foreign.report(source, test, folder, config)
    return f"{said}\nwritten to {folder / 'index.html'}"
  if stage == "diagnose":
    path = _foreign_output(options, "diagnosis.json")
    said = foreign.diagnose(source, path)
  else:
    path = _foreign_output(options, "fusion.json")
    said = foreign.fuse(source, path, config)
  return f"{said}\nwritten to {path}"


def _audit_output(options):
  """A folder of its own, or the one that was named."""
  beside = _foreign_output(options, "audit")
  return beside if options.output is None else beside.parent


_OF_A_RUN = ("config.json", "manifest.json", "base.json", "runs")


def _foreign_output(options, name: str):
  """Where `name` of somebody's probabilities goes: never into a run."""
  from etils import epath

  if options.output is None:
    file = epath.Path(options.predictions)
    whole = epath.Path(os.path.abspath(file))
    if any((up / "manifest.json").exists() for up in whole.parents):
      raise ValueError(f"{file} lies in a run; name a folder by --output")
    known = file.suffix in (".npz", ".csv", ".jsonl")
    return file.parent / f"{file.stem if known else file.name}.{name}"
  folder = epath.Path(options.output)
  if any((folder / part).exists() for part in _OF_A_RUN):
    raise ValueError(
      f"{folder} holds a run, whose {name} stays its own; name another folder "
      "by --output, or none to write beside the file"
    )
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--output={folder} is a file; name a folder")
  return folder / name


def _connect(multihost: str | None) -> None:
  """Joins other processes, where `--multihost` says so."""
  if multihost is None:
    return
  import jax

  from kfkd_jax import processes

  if jax.distributed.is_initialized():  # by whoever called `main`
    return
  processes.connect(*options_lib.parse_multihost(multihost), lost=_lost)


_JAX_KEYS = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
)


def _set_up_jax(config) -> None:
  import jax

  if config.runtime.compilation_cache:
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(
      os.path.expanduser("~"), ".cache", "kfkd_jax", "xla"
    )
    for name, value in zip(_JAX_KEYS, (cache, 0.2), strict=True):
      jax.config.update(name, value)


def _report_exception(kind, error, trace) -> None:
  """Hides what TensorStore's threads print after Orbax gave up on a save."""
  if str(error) != "Event loop is closed":
    sys.__excepthook__(kind, error, trace)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def _advice(error: Exception, workdir: str) -> str:
  number = getattr(error, "errno", None)
  if number in _NO_ROOM:
    return f"; make room in {workdir} and run again: what is written stays"
  if number in _FORBIDDEN:
    return (
      f"; {workdir} must be yours to read and write, or choose another "
      "--workdir"
    )
  return ""


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
  program()
