"""The arguments of the `kfkd` command: what there is and which go together."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from kfkd_jax import __version__

STAGES = {
  "run": "the stages from train to report that are not up to date",
  "train": "train the network and keep its whole history",
  "diagnose": "measure what it forgot (also of --predictions=FILE.npz)",
  "fuse": "choose weights over its checkpoints (also of --predictions)",
  "distill": "teach one network what the fused checkpoints know",
  "rivals": "train the networks of the other methods",
  "compare": "score every method on the test points",
  "report": "write the report page, or one that compares several DIRs",
  "audit": "find wrong training labels (also of --predictions)",
  "export": "write networks and ensembles as files to ship",
  "push": "send what export wrote to REPO on the Hugging Face Hub",
  "predict": "predict INPUT... with an exported --model",
  "sanity": "check on the history that fusing finds nothing in nothing",
  "sweep": "the whole run for a grid of keys and several seeds, and tables",
  "study": "run a NAMEd study and its page; `kfkd study --help` has them",
  "merge": "make one network of saved checkpoints, PATH... in time order",
  "clean": "list what --redo set aside in the working directory, or free it",
  "bench": "measure speed and memory on this machine",
  "help": "say what a KEY means, its default and its range",
}
_PLAIN = ("merge", "help")  # they know no configuration and no workdir
_UNCONFIGURED = ("clean", "push", *_PLAIN)
_ALONE = ("sweep", "study", "bench", *_UNCONFIGURED)  # one process
# What stands after a stage's name.
_INPUTS = {
  "predict": (
    "INPUT",
    "image files, folders of them, patterns, .npz with images[N,H,W,Ch] in "
    "uint8, or - for paths on standard input",
  ),
  "report": ("DIR", "working directories or sweeps to compare on one page"),
  "study": ("NAME", "which study"),
  "merge": ("PATH", "checkpoints in time order, or a folder of them"),
  "push": ("REPO", "OWNER/NAME there, made if new"),
  "help": ("KEY", "keys or sections, such as train.epochs; none: all keys"),
}
_DEFAULT_WORKDIR = "kfkd-workdir"
_STUDIES_WORKDIR = "kfkd-studies"


class Option(NamedTuple):
  """An argument of some stages only.

  Attributes:
    name: with its dashes.
    stages: it goes with.
    help: what it is.
    kind: how argparse reads it.
  """

  name: str
  stages: tuple[str, ...]
  help: str
  kind: dict[str, Any]


_OUTPUTS = {
  "predict": "the .npz of probabilities (default: probs.npz), with a .csv",
  "report": "the folder of a page on several DIRs (default: kfkd-report), or "
  "of that on --predictions",
  "diagnose": "the folder for what comes out of --predictions",
  "fuse": "the folder for what comes out of --predictions",
  "audit": "the folder for the audit (default: audit/ in the run's)",
  "merge": "the new file or folder, as what goes in",
}
_OPTIONS = (
  Option(
    "--predictions",
    ("diagnose", "fuse", "report", "audit"),
    "saved predictions of your own: an .npz with probs[C,N,K], labels[N] and "
    "optionally epochs[C] and ids[N], for diagnose and report also with "
    "correct[C,N] or answers[C,N] in place of probs, or rows of these in .csv "
    "or .jsonl; what comes out goes beside the file, or to --output",
    {"metavar": "FILE"},
  ),
  Option(
    "--test",
    ("report",),
    "with --predictions: what the same checkpoints said of other points, on "
    "which fusions are measured (default: halves measure each other)",
    {"metavar": "FILE"},
  ),
  Option(
    "--seeds",
    ("sweep", "study"),
    "how many seeds (default: those so far, or 5)",
    {"type": int, "metavar": "S"},
  ),
  Option(
    "--grid",
    ("sweep", "study"),
    "values of a key, each a run; several --grid multiply, and a value with "
    "commas stands in parentheses. A study takes other values of its own axes",
    {"action": "append", "metavar": "KEY=V1,V2,..."},
  ),
  Option(
    "--against",
    ("sweep",),
    "whom the others are compared with (default: final)",
    {"metavar": "METHOD"},
  ),
  Option(
    "--choose",
    ("sweep",),
    "say which point of the grid this method would choose by its accuracy on "
    "the selecting points, which the final network would, and what either is "
    "worth on the test points",
    {"metavar": "METHOD"},
  ),
  Option(
    "--only-table",
    ("sweep",),
    "run nothing, show the table of what is finished",
    {"action": "store_const", "const": True},
  ),
  Option(
    "--redo",
    ("run", "train", "distill", "compare"),
    "where changed keys would replace trained networks, set these aside and "
    "train again",
    {"action": "store_const", "const": True},
  ),
  Option(
    "--all",
    ("run", "compare"),
    "show every row of the table, not only those that matter most",
    {"action": "store_const", "const": True},
  ),
  Option(
    "--force",
    ("clean",),
    "free what is listed, for good",
    {"action": "store_const", "const": True},
  ),
  Option(
    "--private",
    ("push",),
    "make a new repository private; one that is there stays as it is",
    {"action": "store_const", "const": True},
  ),
  Option(
    "--model",
    ("predict",),
    "a .jaxexp file, or a name in the working directory",
    {"metavar": "MODEL"},
  ),
  Option(
    "--weights",
    ("merge",),
    "uniform (default), window, ema, exponential, linear or sqrt, or a .json "
    "or .npz of weights, such as fuse writes; FILE:METHOD for others than kf",
    {"metavar": "SHAPE or FILE"},
  ),
  Option(
    "--last",
    ("merge",),
    "only the last K checkpoints (default: all, for window 6)",
    {"type": int, "metavar": "K"},
  ),
  Option(
    "--decay",
    ("merge",),
    "of ema and exponential, per checkpoint (default: 0.9)",
    {"type": float, "metavar": "D"},
  ),
  Option(
    "--output",
    tuple(_OUTPUTS),
    "; ".join(f"{stage}: {what}" for stage, what in _OUTPUTS.items()),
    {"metavar": "FILE or DIR"},
  ),
)


_EXAMPLES = """\
  kfkd run
  kfkd run --config.noise.kind=symmetric --workdir=/tmp/symmetric
  kfkd run --config=configs/cifar.py:data=cifar100,noise=asymmetric
  kfkd sweep --seeds=10 --grid noise.kind=pair,symmetric
  kfkd study noise --seeds=3
  kfkd diagnose --predictions=answers.csv
  kfkd fuse --predictions=probs.npz
  kfkd report --predictions=probs.npz --test=others.npz
  kfkd report runs/pair runs/symmetric --output=both
  kfkd merge checkpoints/ --weights=sqrt --output=merged
  kfkd predict --model=kf_kd pictures/ --output=probs.npz
  kfkd push OWNER/NAME --private
  kfkd help train.epochs
"""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """The options of a command line, and the arguments that set keys.

  Help, the version, an unknown stage, and what argparse itself refuses end the
  program.
  """
  if {"-h", "--help"} & set(argv):
    stage = next((word for word in argv if word in STAGES), None)
    (_stage_parser(stage) if stage else _parser()).parse_args(["--help"])
  options, rest = _parser().parse_known_intermixed_args(argv)
  # Here, for all that is checked later waits for JAX.
  if options.stage not in STAGES:
    _refuse_stage(options.stage)
  if options.predictions is not None:
    # Never a run's: such a working directory is another name for --output.
    options.output = options.output or options.workdir
    beside = os.path.dirname(options.predictions) or "."
    options.workdir = options.output or beside
    return options, rest
  if options.workdir is None:
    study = options.stage == "study"
    options.workdir = _STUDIES_WORKDIR if study else _DEFAULT_WORKDIR
  return options, rest


def _refuse_stage(stage: str | None) -> NoReturn:
  close = difflib.get_close_matches(stage or "", STAGES, n=1)
  said = f"{stage!r} is no stage; " if stage else "name a STAGE, such as run; "
  meant = f"did you mean {close[0]!r}? " if close else ""
  print(f"kfkd: {said}{meant}`kfkd --help` has all", file=sys.stderr)
  raise SystemExit(2)


def check(
  options: argparse.Namespace, rest: Sequence[str]
) -> list[tuple[str, str]]:
  """Refuses what does not go together.

  Returns:
    The keys that are set and their values as text, in order.
  """
  overrides = _overrides(rest)
  if options.profile:
    overrides.append(("runtime.profile", "True"))
  _check_options(options, overrides)
  return overrides


def _parser() -> argparse.ArgumentParser:
  stages = "\n".join(f"  {name:<10}{what}" for name, what in STAGES.items())
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
      f"examples:\n{_EXAMPLES}\n"
      "`kfkd STAGE --help` says more of a stage, `kfkd help KEY` of a key."
    ),
  )
  parser.add_argument(
    "stage", nargs="?", metavar="STAGE", help="what to do, see below"
  )
  inputs = "; ".join(f"for {x}: {what}" for x, (_, what) in _INPUTS.items())
  parser.add_argument("inputs", nargs="*", metavar="INPUT", help=inputs)
  _add_options(parser, None)
  return parser


def _stage_parser(stage: str) -> argparse.ArgumentParser:
  """For the help of one stage."""
  name, what = _INPUTS.get(stage, ("", ""))
  examples = {
    line for line in _EXAMPLES.splitlines() if line.split()[1] == stage
  }
  parser = argparse.ArgumentParser(
    prog=f"kfkd {stage}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=f"{STAGES[stage]}{_choices(stage)}",
    epilog="".join(f"  {line.strip()}\n" for line in sorted(examples)),
  )
  if name:
    parser.add_argument("inputs", nargs="*", metavar=name, help=what)
  _add_options(parser, stage)
  return parser


def _choices(stage: str) -> str:
  """What a study or the weights of a merge may be."""
  if stage == "study":
    from kfkd_jax.lab.studies import STUDIES

    known = {name: study.question for name, study in STUDIES.items()}
  elif stage == "merge":
    from kfkd_jax.merging import SHAPES

    known = {name: what for name, (what, _) in SHAPES.items()}
  else:
    return ""
  heading = {"study": "studies", "merge": "shapes of weights"}[stage]
  lines = [f"  {name:<16}{what}" for name, what in known.items()]
  return "\n".join(["", "", f"{heading}:", *lines])


def _add_options(parser: argparse.ArgumentParser, stage: str | None) -> None:
  """Adds those of a stage, or of all."""
  if stage not in _UNCONFIGURED:
    parser.add_argument(
      "--config",
      metavar="FILE.py[:ARGS]",
      help="a config file, which is Python code that runs: name none that you "
      "have not read; or `default`: digits with 40 %% pair label noise. "
      "Without it, the working directory's own, or the default in a new one",
    )
  if stage not in _PLAIN:
    parser.add_argument(
      "--workdir",
      metavar="DIR",
      help="where everything is kept (default: ./kfkd-workdir, for study "
      "./kfkd-studies)",
    )
  for option in _OPTIONS:
    if stage is None or stage in option.stages:
      said = f"for {' and '.join(option.stages)}: {option.help}"
      if option.name == "--output":
        said = _OUTPUTS.get(stage or "", option.help)
      elif stage:
        said = option.help
      parser.add_argument(option.name, help=said, **option.kind)
  if stage in (None, "run", "train"):
    parser.add_argument(
      "--profile",
      action="store_true",
      help="trace a few steps of the train stage into runs/teacher/profile",
    )
  if stage not in _ALONE:
    parser.add_argument(
      "--multihost",
      nargs="?",
      const="",
      metavar="HOST:PORT,P,I",
      help="one of several processes that train together, started alike on "
      "every host; needed on a TPU pod. Alone on Cloud TPU, Slurm, Kubernetes "
      "and Open MPI; elsewhere the address of process 0, how many there are, "
      "and the number of this one",
    )
  parser.add_argument(
    "--debug", action="store_true", help="show where an error came from"
  )
  parser.add_argument(
    "--version", action="version", version=f"kfkd {__version__}"
  )


def _check_options(options, overrides) -> None:
  """Refuses arguments of another stage, and `predict` without a model."""
  from kfkd_jax.config import ConfigError

  stage = options.stage
  if stage == "predict" and not options.model:
    raise ConfigError("predict needs --model=FILE.jaxexp, or a model's name")
  if options.inputs and stage not in _INPUTS:
    raise ConfigError(
      f"argument {options.inputs[0]!r} is unknown; only {', '.join(_INPUTS)} "
      "take inputs"
    )
  if stage == "merge" and not (options.inputs and options.output):
    raise ConfigError(
      "merge needs checkpoints and --output, as in `kfkd merge DIR "
      "--output=merged`"
    )
  if stage == "study" and len(options.inputs) != 1:
    raise ConfigError("study needs one NAME, such as `kfkd study noise`")
  for option in _OPTIONS:
    value = getattr(options, option.name[2:].replace("-", "_"))
    if stage not in option.stages and value is not None:
      raise ConfigError(
        f"{option.name} goes with {', '.join(option.stages)}, not with "
        f"{stage!r}"
      )
  if stage == "push" and len(options.inputs) != 1:
    raise ConfigError("push needs one REPO, such as `kfkd push OWNER/NAME`")
  if stage == "clean" and (options.config or overrides):
    raise ConfigError("clean takes no --config; only --workdir and --force")
  if stage in _UNCONFIGURED and (options.config or overrides):
    raise ConfigError(f"{stage} takes no --config")
  if stage in _ALONE and options.multihost is not None:
    raise ConfigError(
      f"--multihost does not go with {stage}; start a sweep on every host "
      "with the same --workdir instead, and they share its cells"
    )
  if stage in ("diagnose", "fuse") and (
    options.output is not None and options.predictions is None
  ):
    raise ConfigError(
      f"--output goes with {stage} --predictions=FILE.npz, not with {stage} "
      "alone, which writes to its --workdir"
    )
  if stage != "report":
    return
  if options.test is not None and options.predictions is None:
    raise ConfigError("--test goes with report --predictions=FILE")
  if options.predictions is not None and options.inputs:
    raise ConfigError("report takes DIRs or --predictions, not both")
  if options.predictions is not None:
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
    if key.startswith("--config.") and not equals:
      raise ConfigError(f"{key} has no value; use {key}=VALUE, with a =")
    if not key.startswith("--config."):
      raise ConfigError(
        f"argument {argument!r} is unknown; keys are set by "
        "--config.key=value, and `kfkd --help` lists the rest"
      )
    found.append((key.removeprefix("--config."), value))
  return found


def parse_multihost(text: str) -> tuple:
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
