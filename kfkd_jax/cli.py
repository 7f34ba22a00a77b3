"""The `kfkd` command."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

_STAGES = {
  "run": "all stages below, each only if its inputs changed",
  "train": "train the network and keep its whole history",
  "diagnose": "measure what it forgot (also of --predictions=FILE.npz)",
  "fuse": "choose weights over its checkpoints (also of --predictions)",
  "distill": "teach one network what the fused checkpoints know",
  "compare": "score every method on the test points",
  "report": "write the report page, or one that compares several DIRs",
  "export": "write networks and ensembles as files to ship",
  "predict": "predict INPUT... with an exported --model",
  "sanity": "check on the history that fusing finds nothing in nothing",
  "sweep": "the whole run for a grid of keys and several seeds, and tables",
  "study": "run a NAMEd study of forgetting and fusing, and its page",
  "bench": "measure speed and memory on this machine",
}
_DEFAULT_WORKDIR = "kfkd-workdir"
_STUDIES_WORKDIR = "kfkd-studies"


_FAILED = 1
_USER_ERROR = 2
_DIVERGED = 3
_DISCONNECTED = 4
_INTERRUPTED = 130
_TERMINATED = 143


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Returns:
    The exit code: 0, 1 where a sanity check or a cell of a sweep failed, 2 for
    what the user can correct, 3 where training left the finite numbers, 4 where
    one of several processes is gone, 130 after Ctrl-C. SIGTERM exits with 143.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  parser = _parser()
  options, rest = parser.parse_known_intermixed_args(argv)
  try:
    if options.workdir is None:
      study = options.stage == "study"
      options.workdir = _STUDIES_WORKDIR if study else _DEFAULT_WORKDIR
    overrides = _overrides(rest)
    if options.profile:
      overrides.append(("runtime.profile", "True"))
    _check_options(options, overrides)
    with _exit_on_sigterm():
      return _dispatch(options, overrides)
  except SystemExit as leaving:
    _leave(int(leaving.code or 0), "it was told to leave")
    raise
  except KeyboardInterrupt:
    return _end(_INTERRUPTED, "interrupted; run again to continue")
  except (ValueError, OSError, FloatingPointError) as error:
    if options.debug:
      raise
    diverged = isinstance(error, FloatingPointError)
    line = f"{_one_line(error)}{_advice(error, options.workdir)}"
    return _end(_DIVERGED if diverged else _USER_ERROR, line)
  except RuntimeError as error:
    if options.debug or options.multihost is None:
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
def _exit_on_sigterm() -> Iterator[None]:
  """Lets SIGTERM leave through every `finally`; training defers it."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
  stages = "\n".join(f"  {name:<10}{what}" for name, what in _STAGES.items())
  parser = argparse.ArgumentParser(
    prog="kfkd",
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=(
      "Train a classifier once, measure what it forgot on the way, fuse the\n"
      "checkpoints that still remember, and distil the fusion into one network."
    ),
    epilog=(
      "any key:  --config.KEY=VALUE, such as --config.train.epochs=30\n\n"
      f"stages:\n{stages}\n\n"
      "examples:\n"
      "  kfkd run\n"
      "  kfkd run --config.noise.kind=symmetric --workdir=/tmp/symmetric\n"
      "  kfkd run --config=configs/cifar.py:data=cifar100,noise=asymmetric\n"
      "  kfkd sweep --seeds=10 --grid noise.kind=pair,symmetric\n"
      "  kfkd study noise --seeds=3\n"
      "  kfkd fuse --predictions=probs.npz\n"
      "  kfkd report runs/pair runs/symmetric --output=both\n"
      "  kfkd predict --model=kf_kd picture.png --output=probs.npz\n\n"
      "Every key and its default: kfkd_jax/config/keys.py"
    ),
  )
  parser.add_argument(
    "stage", choices=_STAGES, metavar="STAGE", help="what to do, see below"
  )
  parser.add_argument(
    "inputs",
    nargs="*",
    metavar="INPUT",
    help="for predict: image files, or .npz with images[N,H,W,Ch] in uint8; "
    "for report: working directories or sweeps to compare on one page; for "
    "study: its name",
  )
  parser.add_argument(
    "--config",
    metavar="FILE.py[:ARGS]",
    help="a config file; without it, that of the working directory, or digits "
    "with 40 %% pair label noise in a new one",
  )
  parser.add_argument(
    "--workdir",
    metavar="DIR",
    help="where everything is kept (default: ./kfkd-workdir, for study "
    "./kfkd-studies)",
  )
  parser.add_argument(
    "--predictions",
    metavar="FILE.npz",
    help="saved probabilities of your own: probs[C,N,K], labels[N] and "
    "optionally epochs[C]; for diagnose and fuse",
  )
  parser.add_argument(
    "--seeds",
    type=int,
    metavar="S",
    help="for sweep and study: how many seeds (default: those so far, or 5)",
  )
  parser.add_argument(
    "--grid",
    action="append",
    metavar="KEY=V1,V2,...",
    help="for sweep: values of a key, each a run; several --grid multiply, and "
    "a value with commas stands in parentheses. For study: other values of one "
    "of its axes",
  )
  parser.add_argument(
    "--against",
    metavar="METHOD",
    help="for sweep: whom the others are compared with (default: final)",
  )
  parser.add_argument(
    "--only-table",
    action="store_const",
    const=True,
    help="for sweep: run nothing, show the table of what is finished",
  )
  parser.add_argument(
    "--model",
    metavar="MODEL",
    help="for predict: a .jaxexp file, or a name in the working directory",
  )
  parser.add_argument(
    "--output",
    metavar="FILE",
    help="for predict: where the probabilities go (default: probs.npz); for "
    "report DIR...: the folder of the page (default: kfkd-report)",
  )
  parser.add_argument(
    "--profile",
    action="store_true",
    help="trace a few steps of the train stage into runs/teacher/profile",
  )
  parser.add_argument(
    "--multihost",
    nargs="?",
    const="",
    metavar="HOST:PORT,P,I",
    help="one of several processes that train together, started alike on every "
    "host; needed on a TPU pod. Alone on Cloud TPU, Slurm, Kubernetes and Open "
    "MPI; elsewhere the address of process 0, how many there are, and the "
    "number of this one",
  )
  parser.add_argument(
    "--debug", action="store_true", help="show where an error came from"
  )
  return parser


_BELONGS = {
  "model": ("predict",),
  "output": ("predict", "report"),
  "seeds": ("sweep", "study"),
  "grid": ("sweep", "study"),
  "against": ("sweep",),
  "only_table": ("sweep",),
}


def _check_options(options, overrides) -> None:
  """Refuses arguments of another stage, and `predict` without a model."""
  from kfkd_jax.config import ConfigError

  stage = options.stage
  if stage == "predict" and not options.model:
    raise ConfigError("predict needs --model=FILE.jaxexp, or a model's name")
  if options.inputs and stage not in ("predict", "report", "study"):
    raise ConfigError(
      f"argument {options.inputs[0]!r} is unknown; only predict, report and "
      "study take inputs"
    )
  if stage == "study" and len(options.inputs) != 1:
    raise ConfigError("study needs one NAME, such as `kfkd study noise`")
  for name, stages in _BELONGS.items():
    if stage not in stages and getattr(options, name) is not None:
      raise ConfigError(
        f"--{name.replace('_', '-')} goes with {' and '.join(stages)}, not "
        f"with {stage!r}"
      )
  if stage in ("sweep", "study", "bench") and options.multihost is not None:
    raise ConfigError(
      f"--multihost does not go with {stage}; start a sweep on every host "
      "with the same --workdir instead, and they share its cells"
    )
  if stage != "report":
    return
  if options.output is not None and not options.inputs:
    raise ConfigError("--output goes with report DIR..., not with report alone")
  if options.inputs and (options.config or overrides):
    raise ConfigError(
      "report DIR... shows what is there and takes no --config; its own "
      "configuration is in each directory"
    )


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
  """The `--config.key=value` arguments, in order."""
  from kfkd_jax.config import ConfigError

  found = []
  for argument in rest:
    key, equals, value = argument.partition("=")
    if not key.startswith("--config.") or not equals:
      raise ConfigError(
        f"argument {argument!r} is unknown; keys are set by "
        "--config.key=value, and `kfkd --help` lists the rest"
      )
    found.append((key.removeprefix("--config."), value))
  return found


def _dispatch(options, overrides) -> int:
  from etils import epath

  from kfkd_jax import config as config_lib
  from kfkd_jax import processes

  if options.stage == "report" and options.inputs:
    from kfkd_jax.stages import overview

    print(overview.run(options.inputs, options.output))
    return 0
  workdir = epath.Path(options.workdir)
  saved = workdir / "config.json"
  if options.stage == "sweep" and (workdir / "base.json").exists():
    saved = workdir / "base.json"
  if options.stage == "study":
    from kfkd_jax.stages import studies

    overrides = [*studies.find(options.inputs[0]).changes, *overrides]
    config = config_lib.read(options.config, overrides)
  else:
    config = config_lib.read(options.config, overrides, saved=saved)
  _connect(options.multihost)
  with _exit_on_sigterm():  # again: connecting takes the signal
    code, line = _work(options, config, workdir)

  if line and processes.is_main_process():
    print(line)
  return code


def _work(options, config, workdir) -> tuple[int, str]:
  """Does what was asked for; returns the exit code and what to print."""
  from kfkd_jax import processes

  if options.predictions is not None:
    return 0, processes.on_main(_foreign, options, config)
  _set_up_jax(config)
  from kfkd_jax import processes, stages

  if options.stage == "bench":
    from kfkd_jax.stages import bench

    return 0, processes.on_main(bench.run, config, workdir)
  if options.stage == "predict":
    from kfkd_jax.stages import predict

    output = options.output or "probs.npz"
    return 0, processes.on_main(
      predict.run, options.model, options.inputs, output, workdir
    )
  if options.stage in ("sweep", "study"):
    return _sweep(options, config, workdir)
  if options.stage == "sanity":
    from kfkd_jax.stages import sanity

    table, passed = processes.on_main(sanity.run, config, workdir)
    return 0 if passed else _FAILED, table
  if options.stage != "run":
    stages.run_stage(config, workdir, options.stage)
    return 0, _check_traced(options, workdir)
  ran = stages.run(config, workdir)
  page = workdir / "report" / "index.html"
  line = f"The report is at {page}" if ran else f"Nothing to do; see {page}"
  return 0, "\n".join(filter(None, (_check_traced(options, workdir), line)))


def _sweep(options, config, workdir) -> tuple[int, str]:
  """Runs cells, or only reads them; lists those that failed."""
  from kfkd_jax.stages import sweep

  against, grid = options.against or "final", options.grid or ()
  if options.only_table:
    return 0, sweep.read_table(config, workdir, against=against)
  if options.stage == "study":
    from kfkd_jax.stages import studies

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


def _foreign(options, config) -> str:
  """`diagnose` and `fuse` on somebody's saved probabilities."""
  from etils import epath

  from kfkd_jax import files, lock
  from kfkd_jax.config import ConfigError
  from kfkd_jax.predictions import read_foreign
  from kfkd_jax.stages import diagnose, fuse

  if options.stage not in ("diagnose", "fuse"):
    raise ConfigError(
      f"--predictions goes with diagnose and fuse, not with {options.stage!r}"
    )
  probs, labels, numbers = read_foreign(epath.Path(options.predictions))
  epochs = numbers.tolist()
  workdir = epath.Path(options.workdir)
  if options.stage == "diagnose":
    split = diagnose.diagnose(probs, labels, probs.shape[2])
    content = {"epochs": epochs, "splits": {"test": split}}
    name, line = "diagnosis.json", diagnose.summary(split, epochs)
  else:
    methods = fuse.fuse(config, probs, labels)
    fold = {
      "selected_on": str(options.predictions),
      "num_select": len(labels),
      "methods": methods,
    }
    content = {"epochs": epochs, "folds": [fold]}
    name, line = "fusion.json", fuse.summary(methods, epochs)
  with lock.held(workdir):
    files.write_json(workdir / name, content)
  return f"{line}\nwritten to {workdir / name}"


def _connect(multihost: str | None) -> None:
  """Joins other processes, where `--multihost` says so."""
  if multihost is None:
    return
  import jax

  from kfkd_jax import processes

  if jax.distributed.is_initialized():  # by whoever called `main`
    return
  processes.connect(*_parse_multihost(multihost), lost=_lost)


def _parse_multihost(text: str) -> tuple:
  """`HOST:PORT,P,I` as `(address, P, I)`, nothing as nothing."""
  if not text:
    return ()
  from kfkd_jax.config import ConfigError

  address, *numbers = text.split(",")
  _, colon, port = address.rpartition(":")
  counts = [int(n) for n in numbers if n.isascii() and n.isdigit()]
  if not (colon and port.isdigit() and len(counts) == len(numbers) == 2):
    raise ConfigError(
      f"--multihost={text} is not HOST:PORT,P,I, such as 10.0.0.2:8476,4,0 for "
      "the first of 4 processes"
    )
  count, number = counts
  if not number < count:
    raise ConfigError(
      f"--multihost={text}: process {number} is none of 0 to {count - 1}"
    )
  return address, count, number


def _set_up_jax(config) -> None:
  import jax

  sys.excepthook = _report_exception
  if config.runtime.compilation_cache:
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(
      os.path.expanduser("~"), ".cache", "kfkd_jax", "xla"
    )
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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
    return f"; {workdir} must be writable, or choose another --workdir"
  return ""


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
  sys.exit(main())
