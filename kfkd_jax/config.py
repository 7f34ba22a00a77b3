"""The configuration: every key, its default and meaning, and what is allowed.

A config file is a Python file with `get_config(args="")` that changes
`default_config()`; on the command line any key is set by
`--config.section.key=value`. A key that is not listed here does not exist.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import reprlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_collections
from etils import epath
from ml_collections import config_dict

from kfkd_jax import data, files, models, optim
from kfkd_jax.data.splits import NOISE_KINDS, NUM_HALVINGS

DTYPES = ("float32", "bfloat16")
STORE_DTYPES = ("float32", "float16")
TEACHERS = ("kf", "mixture")
_MAX_COUNT = 2**31 - 1
EXPORTABLE = ("final", *TEACHERS, *(f"{teacher}_kd" for teacher in TEACHERS))


class ConfigError(ValueError):
  """A configuration that cannot work: one line that names key and value."""


def default_config() -> ml_collections.ConfigDict:
  """Digits with 40 % pair label noise and a small convolutional network."""
  c = ml_collections.ConfigDict()
  # Root of all randomness; `seeds` may set single streams apart from it.
  c.seed = 0
  c.seeds = ml_collections.ConfigDict()
  c.seeds.model = config_dict.placeholder(int)  # initial parameters
  c.seeds.order = config_dict.placeholder(int)  # order of examples
  c.seeds.augment = config_dict.placeholder(int)  # crops, flips, mixing
  c.seeds.noise = config_dict.placeholder(int)  # which labels are wrong
  c.seeds.selection = config_dict.placeholder(int)  # who selects, who tests

  c.data = ml_collections.ConfigDict()
  c.data.name = "digits"  # a package builder or any TFDS image set
  c.data.dir = config_dict.placeholder(str)  # TFDS directory; None: its own
  c.data.num_train = config_dict.placeholder(int)  # None: all that is left

  c.noise = ml_collections.ConfigDict()
  c.noise.kind = "pair"  # one of NOISE_KINDS
  c.noise.rate = 0.4  # share of labels that change; 0 for none and field
  c.noise.field = config_dict.placeholder(str)  # label column for kind=field

  c.selection = ml_collections.ConfigDict()
  c.selection.source = "train"  # carved from train, or half of test
  c.selection.num = 400  # examples carved from train; half of test needs none
  c.selection.labels = "clean"  # or noisy: what the selecting points carry
  c.selection.halvings = 3  # of the test split, where source is test

  c.augment = ml_collections.ConfigDict()
  c.augment.pad = 1  # pixels around a random crop to the old size
  c.augment.flip = False  # mirror half of the images
  c.augment.cutout = 2  # side of a blanked square
  c.augment.mixup = 0.0  # Beta concentration; 0: no mixing

  c.model = ml_collections.ConfigDict()
  c.model.name = "cnn"  # a key of kfkd_jax.models.MODELS
  c.model.width = config_dict.placeholder(int)  # None: the model's own
  # cifar or imagenet, for small or large images; None: the model's own, cifar
  # for resnet18 and resnet34 and imagenet for the others that have a choice.
  c.model.stem = config_dict.placeholder(str)
  c.model.patch = config_dict.placeholder(int)  # side of a token; None: 16
  c.model.remat = False  # compute activations twice instead of keeping them
  # A .safetensors file in timm's or Hugging Face's naming, from which every
  # network's training starts, with a fresh head where the classes differ.
  c.model.pretrained = config_dict.placeholder(str)
  c.model.dtype = "float32"  # of the computation; parameters stay float32

  c.optim = ml_collections.ConfigDict()
  c.optim.name = "sgd"  # sgd or adamw
  c.optim.learning_rate = 0.1  # its peak
  c.optim.momentum = 0.9
  c.optim.nesterov = False
  c.optim.weight_decay = 5e-4
  c.optim.decay_everything = False  # biases and norm parameters as well
  c.optim.clip_norm = config_dict.placeholder(float)  # None: never clip
  c.optim.schedule = "cosine"  # constant, cosine or step
  c.optim.warmup_epochs = 0
  c.optim.boundaries = (0.5, 0.75)  # step: shares of the run
  c.optim.decay = 0.1  # step: factor at each boundary

  c.train = ml_collections.ConfigDict()
  c.train.epochs = 60
  c.train.batch_size = 64  # of all devices together
  c.train.label_smoothing = 0.0
  c.train.average_decay = config_dict.placeholder(float)  # EMA; None: none

  c.history = ml_collections.ConfigDict()
  c.history.every = 1  # epochs between kept checkpoints
  c.history.resume_every = 10  # epochs between full states

  c.predictions = ml_collections.ConfigDict()
  c.predictions.batch_size = 1024  # examples predicted at once
  c.predictions.dtype = "float32"  # or float16, half the disk
  c.predictions.train = True  # training points too: what noise was memorised

  c.fuse = ml_collections.ConfigDict()
  c.fuse.window = 1  # neighbours averaged on either side
  c.fuse.num_epsilons = 101  # grid of mixing weights
  c.fuse.max_members = 20
  c.fuse.transition = "none"  # known: mixture told the noise of its labels
  c.fuse.tolerance = 1e-3  # optimality gap of the mixture

  c.distill = ml_collections.ConfigDict()
  c.distill.teachers = ("kf", "mixture")  # fusions to distil
  c.distill.targets = "cached"  # or live: teachers see the student's view
  c.distill.hard = False  # learn the teacher's top class only
  c.distill.alpha = 1.0  # weight of the teacher; the rest: given labels
  c.distill.temperature = 1.0
  c.distill.epochs = config_dict.placeholder(int)  # None: train.epochs

  c.compare = ml_collections.ConfigDict()
  c.compare.independent = 3  # networks of the independent ensemble; 1: none
  c.compare.bootstrap_samples = 2000
  c.compare.level = 0.95  # of the intervals

  c.report = ml_collections.ConfigDict()
  c.report.num_examples = 12  # forgotten examples shown as pictures

  c.export = ml_collections.ConfigDict()
  c.export.models = config_dict.placeholder(tuple)  # of EXPORTABLE; None: all
  c.export.parity_examples = 256  # test images to compare with the live model
  c.export.saved_model = True  # as well, where TensorFlow is installed

  c.bench = ml_collections.ConfigDict()
  c.bench.fusion = "memory"  # history to fuse: tiny, memory or disk (9 GB)

  c.runtime = ml_collections.ConfigDict()
  c.runtime.compilation_cache = True  # keep compiled programs between runs
  c.runtime.tensorboard = False  # event files beside metrics.jsonl
  return c


def parse_arguments(text: str, **defaults: Any) -> ml_collections.ConfigDict:
  """A config file's string argument, `"noise=pair,rate=0.4,runlocal"`.

  Args:
    text: comma-separated `name=value`; a bare name means True.
    **defaults: every allowed name with its default, which sets the type.

  Returns:
    The values, typed like their defaults.
  """
  values = ml_collections.ConfigDict(defaults)
  for part in filter(None, (p.strip() for p in text.split(","))):
    name, _, value = part.partition("=")
    if name not in defaults:
      raise ConfigError(
        f"config argument {name!r} is unknown; this file takes "
        f"{sorted(defaults)}"
      )
    values[name] = _typed(name, value or "True", defaults[name], None)
  return values


def load_config(spec: str | None) -> ml_collections.ConfigDict:
  """The config of `FILE.py` or `FILE.py:arguments`; None: the default."""
  if spec is None:
    return default_config()
  path, _, arguments = spec.partition(":")
  if not epath.Path(path).exists():
    raise ConfigError(f"--config: there is no file {path}")
  module_spec = importlib.util.spec_from_file_location("kfkd_config", path)
  if module_spec is None or module_spec.loader is None:
    raise ConfigError(f"--config: {path} is not a Python file (.py)")
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    config = module.get_config(arguments)
  except ConfigError:
    raise
  except Exception as error:
    raise ConfigError(
      f"--config: {path} failed: {type(error).__name__}: {error}"
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(
      f"--config: get_config of {path} returns a {type(config).__name__}; it "
      "must return a ConfigDict, from default_config()"
    )
  return config


def read(
  spec: str | None,
  overrides: Iterable[tuple[str, str]] = (),
  *,
  saved: epath.Path | None = None,
) -> ml_collections.ConfigDict:
  """The validated config of a command.

  Args:
    spec: for `load_config`.
    overrides: keys and their values as text, set on top.
    saved: `config.json` of a working directory, which is continued where
      there is one and no `spec`.
  """
  if spec is None and saved is not None and saved.exists():
    config = _from_json(saved)
  else:
    config = load_config(spec)
  for key, text in overrides:
    override(config, key, text)
  validate(config)
  return config


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
  """Sets `key` (dotted) from the text given on the command line."""
  *sections, name = key.split(".")
  node = config
  for section in sections:
    node = node.get(section) if _is_section(node, section) else None
  if node is None or name not in node or _is_section(node, name):
    close = _closest(key, _keys(config))
    raise ConfigError(f"config key {key!r} is unknown; did you mean {close}?")
  node[name] = _typed(key, text, node[name], node.get_type(name))


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises a `ConfigError` naming the first key that cannot work."""
  _check_structure(config)
  for key, allowed, fits in _rules():
    value = _get(config, key)
    if value is None and _get_type(config, key) is not None:
      if key not in _OPTIONAL:
        raise ConfigError(f"{key} is None; it must be {allowed}")
      continue
    if not fits(value):
      raise ConfigError(
        f"{key}={_shown(value)} is not possible; allowed: {allowed}"
      )
  _check_pairs(config)


def subset(
  config: ml_collections.ConfigDict, keys: Sequence[str]
) -> dict[str, Any]:
  """The values under `keys`, each a section or a dotted key."""
  found = {key: _get(config, key) for key in keys}
  return {
    key: v.to_dict() if isinstance(v, ml_collections.ConfigDict) else v
    for key, v in found.items()
  }


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as readable JSON, in the order of `default_config`."""
  return json.dumps(config.to_dict(), indent=1, default=list) + "\n"


def _from_json(path: epath.Path) -> ml_collections.ConfigDict:
  """The config that `to_json` wrote; keys that are new since keep defaults."""
  config = default_config()
  try:
    saved = ml_collections.ConfigDict(files.read_json(path))
    for key in _keys(saved):
      value = _get(saved, key)
      override(config, key, value if isinstance(value, str) else repr(value))
  except (ValueError, TypeError, AttributeError) as error:
    raise ConfigError(
      f"{path} cannot be continued ({error}); name a --config or another "
      "--workdir"
    ) from error
  return config


_OPTIONAL = {
  "seeds.model", "seeds.order", "seeds.augment", "seeds.noise",
  "seeds.selection", "data.num_train", "data.dir", "noise.field",
  "model.width", "model.stem", "model.patch", "model.pretrained",
  "optim.clip_norm", "train.average_decay", "distill.epochs", "export.models",
}  # fmt: skip

Rule = tuple[str, str, Callable[[Any], bool]]


def _at_least(key: str, low: int) -> Rule:
  return key, f"{low} or more", lambda v: low <= v <= _MAX_COUNT


def _between(key: str, low: float, high: float) -> Rule:
  return key, f"{low:g} to {high:g}", lambda v: low <= v <= high


def _one_of(key: str, choices: Sequence[str]) -> Rule:
  return key, ", ".join(choices), lambda v: v in choices


def _rules() -> list[Rule]:
  return [
    _at_least("seed", 0),
    *[
      _at_least(f"seeds.{s}", 0)
      for s in ("model", "order", "augment", "noise", "selection")
    ],
    ("data.name", f"such as {', '.join(data.NAMES)}", lambda v: bool(v)),
    _at_least("data.num_train", 1),
    _one_of("noise.kind", NOISE_KINDS),
    _between("noise.rate", 0, 1),
    _one_of("selection.source", ("train", "test")),
    _at_least("selection.num", 1),
    _one_of("selection.labels", ("clean", "noisy")),
    _between("selection.halvings", 1, NUM_HALVINGS),
    _between("augment.pad", 0, 64),
    _between("augment.cutout", 0, 512),
    _between("augment.mixup", 0, 100),
    _one_of("model.name", sorted(models.MODELS)),
    _between("model.width", 1, 2**14),
    _one_of("model.stem", models.STEMS),
    _between("model.patch", 1, 512),
    (
      "model.pretrained",
      "an existing .safetensors file",
      lambda v: v.endswith(".safetensors") and epath.Path(v).exists(),
    ),
    _one_of("model.dtype", DTYPES),
    _one_of("optim.name", optim.OPTIMIZERS),
    _between("optim.learning_rate", 0, 1e3),
    _between("optim.momentum", 0, 1),
    _between("optim.weight_decay", 0, 10),
    _between("optim.clip_norm", 1e-12, 1e12),
    _one_of("optim.schedule", optim.SCHEDULES),
    _at_least("optim.warmup_epochs", 0),
    (
      "optim.boundaries",
      "ascending shares of the run between 0 and 1",
      lambda v: (
        all(isinstance(b, (int, float)) and 0 < b < 1 for b in v)
        and list(v) == sorted(set(v))
      ),
    ),
    _between("optim.decay", 0, 1),
    _between("train.epochs", 1, 10**6),
    _between("train.batch_size", 1, 2**20),
    _between("train.label_smoothing", 0, 1),
    _between("train.average_decay", 0, 1),
    _at_least("history.every", 1),
    _at_least("history.resume_every", 1),
    _between("predictions.batch_size", 1, 2**20),
    _one_of("predictions.dtype", STORE_DTYPES),
    _between("fuse.window", 0, 10**6),
    _between("fuse.num_epsilons", 2, 10**5),
    _between("fuse.max_members", 1, 10**4),
    _one_of("fuse.transition", ("none", "known")),
    _between("fuse.tolerance", 1e-7, 1),
    (
      "distill.teachers",
      f"a tuple of {TEACHERS}, each at most once",
      lambda v: all(v.count(t) == 1 and t in TEACHERS for t in v),
    ),
    _one_of("distill.targets", ("cached", "live")),
    _between("distill.alpha", 0, 100),
    _between("distill.temperature", 1e-2, 100),
    _between("distill.epochs", 1, 10**6),
    _between("compare.independent", 1, 1000),
    _between("compare.bootstrap_samples", 100, 10**6),
    _between("compare.level", 0.5, 0.9999),
    _between("report.num_examples", 0, 1000),
    (
      "export.models",
      f"a tuple of {EXPORTABLE}, each at most once",
      lambda v: v and set(v) <= set(EXPORTABLE) and len(set(v)) == len(v),
    ),
    _between("export.parity_examples", 1, 10**6),
    _one_of("bench.fusion", ("tiny", "memory", "disk")),
  ]


def _check_structure(config: ml_collections.ConfigDict) -> None:
  reference = default_config()
  try:
    known, given = _keys(reference), _keys(config)
  except TypeError as error:  # ml_collections sorts, and takes numbers as keys
    raise ConfigError(f"config keys must be names: {error}") from error
  for key in given:
    if key not in known:
      close = _closest(key, known)
      raise ConfigError(f"config key {key!r} is unknown; did you mean {close}?")
  for key in known:
    if key not in given:
      raise ConfigError(
        f"config key {key!r} is missing; start from default_config()"
      )
    _check_type(key, _get(config, key), _get_type(reference, key))


def _check_type(key: str, value: Any, expected: type | None) -> None:
  if value is None and key in _OPTIONAL:
    return
  if expected is float and type(value) is int:
    return
  if expected is tuple and isinstance(value, list):
    return
  if expected is not None and type(value) is not expected:
    raise ConfigError(
      f"{key}={_shown(value)} has type {type(value).__name__}; it must be "
      f"{expected.__name__}"
    )


def _shown(value: Any) -> str:
  """`repr`, shortened; a whole number of thousands of digits has none."""
  try:
    return reprlib.repr(value)
  except ValueError:
    return "a number of thousands of digits"


def _check_pairs(config: ml_collections.ConfigDict) -> None:
  _check_model(config.model)
  noise, kind = config.noise, config.noise.kind
  taught = {f"{teacher}_kd" for teacher in config.distill.teachers}
  untaught = sorted(
    set(config.export.models or ()) - {"final", *TEACHERS, *taught}
  )
  pairs = [
    (
      kind in ("none", "field") and noise.rate,
      f"noise.kind={kind!r} takes no rate but noise.rate={noise.rate}; set "
      "noise.rate=0",
    ),
    (
      kind == "field" and noise.field is None,
      "noise.kind='field' needs noise.field, the name of a label column; it "
      "is None",
    ),
    (
      kind != "field" and noise.field is not None,
      f"noise.field={noise.field!r} needs noise.kind='field', not {kind!r}",
    ),
    (
      config.fuse.transition == "known"
      and (config.selection.labels == "clean" or kind not in _HAS_TRANSITION),
      "fuse.transition='known' needs selection.labels='noisy' and a noise.kind "
      f"with a matrix, got {config.selection.labels!r} and {kind!r}",
    ),
    (
      config.optim.warmup_epochs >= config.train.epochs,
      f"optim.warmup_epochs={config.optim.warmup_epochs} leaves nothing of "
      f"train.epochs={config.train.epochs}",
    ),
    (
      config.distill.epochs is not None
      and config.optim.warmup_epochs >= config.distill.epochs,
      f"optim.warmup_epochs={config.optim.warmup_epochs} leaves nothing of "
      f"distill.epochs={config.distill.epochs}",
    ),
    (
      config.distill.hard and config.distill.temperature != 1.0,
      "distill.hard=True has no use for distill.temperature="
      f"{config.distill.temperature}; leave it at 1",
    ),
    (
      untaught,
      f"export.models names {untaught}, whom distill.teachers="
      f"{tuple(config.distill.teachers)} does not teach",
    ),
  ]
  for wrong, message in pairs:
    if wrong:
      raise ConfigError(message)


def _check_model(model: ml_collections.ConfigDict) -> None:
  known = models.option_names(model.name)
  for key in ("stem", "patch", "remat"):
    if model[key] and key not in known:
      fitting = [n for n in models.MODELS if key in models.option_names(n)]
      raise ConfigError(
        f"model.{key}={model[key]!r} does not fit model.name={model.name!r}; "
        f"it fits {', '.join(fitting)}"
      )
  if model.pretrained is not None and model.name in models.UNPUBLISHED:
    raise ConfigError(
      f"model.pretrained={model.pretrained!r} does not fit model.name="
      f"{model.name!r}, for which nobody publishes weights"
    )


_HAS_TRANSITION = ("symmetric", "pair", "asymmetric")


def _typed(key: str, text: str, current: Any, expected: type | None) -> Any:
  """Reads `text` as the type that `key` has."""
  expected = expected or type(current)
  if expected is str:
    return None if text == "None" and key in _OPTIONAL else text
  value = _literal(text)
  if expected is tuple and isinstance(value, str):
    value = tuple(filter(None, (v.strip() for v in value.split(","))))
  if expected is tuple and isinstance(value, (int, float)):
    value = (value,)
  _check_type(key, value, expected)
  if value is None:
    return None
  try:
    return expected(value)
  except OverflowError:
    raise ConfigError(
      f"{key}={_shown(value)} is not possible; it does not fit a "
      f"{expected.__name__}"
    ) from None


def _literal(text: str) -> Any:
  """The Python literal that `text` spells, else `text` itself."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # such as an escape that does not exist
      return ast.literal_eval(text)
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    return text


def _is_section(node: Any, name: str) -> bool:
  return isinstance(node, ml_collections.ConfigDict) and isinstance(
    node.get(name), ml_collections.ConfigDict
  )


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
  keys: list[str] = []
  for name in config:
    if _is_section(config, name):
      keys += _keys(config[name], f"{prefix}{name}.")
    else:
      keys.append(prefix + name)
  return keys


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
  for name in key.split("."):
    config = config[name]
  return config


def _get_type(config: ml_collections.ConfigDict, key: str) -> type | None:
  *sections, name = key.split(".")
  for section in sections:
    config = config[section]
  return config.get_type(name)


def _closest(key: str, known: Sequence[str]) -> str:
  import difflib

  # The last part says most: "--config.lr" should find optim.learning_rate's
  # neighbours before unrelated keys of the same length.
  close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
  return repr(close[0])
