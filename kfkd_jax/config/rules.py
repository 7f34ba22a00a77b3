"""What is allowed: types, ranges and pairs of keys."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from etils import epath

from kfkd_jax import data, models, optim, published
from kfkd_jax.config import pairs, tree
from kfkd_jax.config.keys import default_config
from kfkd_jax.config.pairs import TEACHERS
from kfkd_jax.config.tree import ConfigError
from kfkd_jax.data.splits import NOISE_KINDS, NUM_HALVINGS
from kfkd_jax.training import clock

DTYPES = ("float32", "bfloat16")
STORE_DTYPES = ("float32", "float16")
STRATEGIES = (
  "air", "air_soft", "air_previous", "ps_kd", "self_adaptive", "mutual",
  "online_fusion", "sckd", "dkd", "dist", "standardized_kd", "relational_kd",
  "xi_kd", "partial_kd", "agreement_kd", "propagation",
)  # fmt: skip
METHODS = (
  "uniform_soup", "greedy_soup", "swa", "snapshot", "fge",
  "independent_equal_budget", "gce", "sce", "elr", "label_smoothing", "mixup",
  *STRATEGIES,
)  # fmt: skip
ROWS = (
  "final", "horizontal", "fixed_jumps", "random_epochs", "best_epoch",
  "early_stopping", "kf_one_step", "kf", "mixture", "kf_soup", "ema",
  "independent", *(f"{teacher}_kd" for teacher in TEACHERS), *METHODS,
)  # fmt: skip
PARTS = (
  "steps", "stage", "predictions", "storage", "devices", "fusion", "peer",
)  # fmt: skip
PEERS = (
  "cnn_8px", "cnn_28px", "cnn_28px_wide", "cnn_32px", "resnet18_32px",
)  # fmt: skip
EXPORTABLE = ("final", *TEACHERS, *(f"{teacher}_kd" for teacher in TEACHERS))
_MAX_COUNT = 2**31 - 1
OPTIONAL = frozenset({"selection.num"}) | {
  key
  for key in tree.names(default_config())
  if tree.get(default_config(), key) is None
}

Rule = tuple[str, str, Callable[[Any], bool]]


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises a `ConfigError` naming the first key that cannot work."""
  _check_structure(config)
  for key, allowed, fits in _rules():
    value = tree.get(config, key)
    if value is None and tree.get_type(config, key) is not None:
      if key not in OPTIONAL:
        raise ConfigError(f"{key} is None; it must be {allowed}")
      continue
    if not fits(value):
      raise ConfigError(
        f"{key}={shown(value)} is not possible; allowed: {allowed}"
      )
  pairs.check(config)


def _at_least(key: str, low: int) -> Rule:
  return key, f"{low} or more", lambda v: low <= v <= _MAX_COUNT


def _between(key: str, low: float, high: float) -> Rule:
  return key, f"{low:g} to {high:g}", lambda v: low <= v <= high


def _one_of(key: str, choices: Sequence[str]) -> Rule:
  return key, ", ".join(choices), lambda v: v in choices


def _range(key: str, low: float, high: float) -> Rule:
  return (
    key,
    f"two ascending numbers from {low:g} to {high:g}",
    lambda v: _are_numbers(v, 2) and low <= v[0] <= v[1] <= high,
  )


def _some_of(key: str, choices: Sequence[str]) -> Rule:
  return (
    key,
    f"a tuple of {', '.join(choices)}, each at most once",
    lambda v: all(v.count(name) == 1 and name in choices for name in v),
  )


def _baseline_rules() -> list[Rule]:
  pair = "two numbers from 0 to 1, the higher first"
  return [
    _between("baselines.swa_start", 0, 0.999),
    _between("baselines.swa_rate", 0, 1),
    _at_least("baselines.swa_cycle", 1),
    _between("baselines.snapshot_cycles", 1, 10**4),
    _between("baselines.fge_start", 0, 1),
    (
      "baselines.fge_cycle",
      "an even number, 2 or more",
      lambda v: 2 <= v <= _MAX_COUNT and v % 2 == 0,
    ),
    (
      "baselines.fge_rates",
      pair,
      lambda v: _are_numbers(v, 2) and 1 >= v[0] >= v[1] >= 0 and v[0] > 0,
    ),
    _between("baselines.gce_q", 0, 1),
    (
      "baselines.sce_weights",
      "two numbers, 0 or more",
      lambda v: _are_numbers(v, 2) and min(v) >= 0,
    ),
    _between("baselines.elr_weight", 0, 1e3),
    _between("baselines.elr_decay", 0, 1),
    _between("baselines.label_smoothing", 0, 1),
    _between("baselines.mixup", 1e-3, 100),
  ]


def _strategy_rules() -> list[Rule]:
  return [
    _one_of("strategy.teacher", TEACHERS),
    _between("strategy.label_weight", 0, 100),
    _between("strategy.temperature", 1e-2, 100),
    *[
      _between(f"strategy.{key}", 0, 1)
      for key in (
        "air_share", "ps_kd_share", "self_adaptive_start",
        "self_adaptive_decay",
      )
    ],
    _between("strategy.sckd_threshold", -1, 1),
    *[
      (
        f"strategy.{name}_weights",
        "two numbers, 0 or more",
        lambda v: _are_numbers(v, 2) and min(v) >= 0,
      )
      for name in ("dkd", "dist", "relational")
    ],
    _between("strategy.standardized_weight", 0, 1e3),
    _between("strategy.xi", 0, 100),
    _between("strategy.neighbours", 1, 10**4),
    _between("strategy.propagation_decay", 0, 0.9999),
  ]  # fmt: skip


def _are_numbers(values: Any, count: int) -> bool:
  return len(values) == count and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
  """Whether it is a finite number; True is none, whatever Python says."""
  most = sys.float_info.max
  return type(value) in (int, float) and -most <= value <= most


def _rules() -> list[Rule]:
  return [
    _at_least("seed", 0),
    *[
      _at_least(f"seeds.{s}", 0)
      for s in ("model", "order", "augment", "noise", "selection")
    ],
    ("data.name", f"such as {', '.join(data.NAMES)}", lambda v: bool(v)),
    _at_least("data.num_train", 1),
    (
      "data.root",
      "an existing folder",
      lambda v: epath.Path(v).expanduser().is_dir(),
    ),
    _between("data.image_size", 1, 2**14),
    _between("data.crop_share", 0.01, 1),
    _between("data.test_share", 0, 1),
    _one_of("data.stream", data.STREAMING),
    _between("data.memory_limit", 0, 2**20),
    _between("data.workers", 0, 1024),
    _one_of("noise.kind", NOISE_KINDS),
    _between("noise.rate", 0, 1),
    _one_of("selection.source", ("train", "test")),
    _at_least("selection.num", 1),
    _one_of("selection.labels", ("clean", "noisy")),
    _between("selection.halvings", 1, NUM_HALVINGS),
    _between("augment.pad", 0, 64),
    _between("augment.cutout", 0, 512),
    _between("augment.mixup", 0, 100),
    _range("augment.crop_scale", 1e-4, 1),
    _range("augment.crop_ratio", 0.01, 100),
    _between("augment.rand_ops", 0, data.MAX_RAND_OPS),
    _between("augment.rand_magnitude", 0, data.MAX_MAGNITUDE),
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
        all(_is_number(b) and 0 < b < 1 for b in v)
        and list(v) == sorted(set(v))
      ),
    ),
    _between("optim.decay", 0, 1),
    _between("optim.low", 0, 1),
    _at_least("optim.cycle", 1),
    _between("optim.hold", 0, 1),
    _between("train.epochs", 1, 10**6),
    _between("train.batch_size", 1, 2**20),
    _between("train.label_smoothing", 0, 1),
    _between("train.average_decay", 0, 1),
    _between("train.micro_batches", 1, 2**20),
    (
      "history.every",
      "a whole number, or one over a whole number such as 0.25",
      lambda v: 1e-4 <= v <= _MAX_COUNT and (v if v >= 1 else 1 / v) % 1 == 0,
    ),
    _one_of("history.unit", clock.UNITS),
    _at_least("history.keep", 2),
    _one_of("history.dtype", DTYPES),
    _at_least("history.resume_every", 1),
    _between("predictions.batch_size", 1, 2**20),
    _one_of("predictions.dtype", STORE_DTYPES),
    _between("fuse.window", 0, 10**6),
    _between("fuse.num_epsilons", 2, 10**5),
    _between("fuse.max_members", 1, 10**4),
    _one_of("fuse.transition", ("none", "known")),
    _between("fuse.tolerance", 1e-7, 1),
    _some_of("distill.teachers", TEACHERS),
    _one_of("distill.targets", ("cached", "live")),
    _between("distill.alpha", 0, 100),
    _between("distill.temperature", 1e-2, 100),
    _between("distill.epochs", 1, 10**6),
    _one_of("distill.model", sorted(models.MODELS)),
    _between("distill.width", 1, 2**14),
    _between("distill.rounds", 1, 1000),
    _one_of("distill.rounds_stop", ("none", "accuracy", "nll")),
    _one_of("distill.inputs", ("train", "extra", "both")),
    ("distill.extra", "rest, or the name of a data set", lambda v: bool(v)),
    _between("compare.independent", 1, 1000),
    _some_of("compare.methods", METHODS),
    _some_of("compare.temperature", ROWS),
    _some_of("compare.test_time", ROWS),
    _between("compare.views", 2, 1000),
    _at_least("compare.patience", 1),
    *_baseline_rules(),
    *_strategy_rules(),
    _between("compare.bootstrap_samples", 100, 10**6),
    _between("compare.level", 0.5, 0.9999),
    _between("report.num_examples", 0, 1000),
    _one_of("report.paper", tuple(published.COLUMNS)),
    (
      "export.models",
      f"a tuple of {EXPORTABLE}, each at most once",
      lambda v: v and all(v.count(m) == 1 and m in EXPORTABLE for m in v),
    ),
    _between("export.parity_examples", 1, 10**6),
    _some_of("bench.parts", PARTS),
    _some_of("bench.peers", PEERS),
    *[
      _between(f"bench.{key}", 1, 10**4)
      for key in ("rounds", "steps", "epochs", "members", "checkpoints")
    ],
    _one_of("bench.fusion", ("tiny", "memory", "disk")),
    _between("runtime.ensemble_axis", 1, 2**14),
    (
      "runtime.wandb",
      "a project's name of 1 to 128 characters without any of /\\#?%:",
      lambda v: 1 <= len(v) <= 128 and not set(v) & set("/\\#?%:"),
    ),
  ]


def _check_structure(config: ml_collections.ConfigDict) -> None:
  reference = default_config()
  try:
    known, given = tree.names(reference), tree.names(config)
  except TypeError as error:  # ml_collections sorts, and takes numbers as keys
    raise ConfigError(f"config keys must be names: {error}") from error
  for key in given:
    if key not in known:
      close = tree.closest(key, known)
      raise ConfigError(f"config key {key!r} is unknown; did you mean {close}?")
  for key in known:
    if key not in given:
      raise ConfigError(
        f"config key {key!r} is missing; start from default_config()"
      )
    check_type(key, tree.get(config, key), tree.get_type(reference, key))


def check_type(key: str, value: Any, expected: type | None) -> None:
  if value is None and key in OPTIONAL:
    return
  if expected is float and type(value) is int:
    return
  if expected is tuple and isinstance(value, list):
    return
  if expected is not None and type(value) is not expected:
    raise ConfigError(
      f"{key}={shown(value)} has type {type(value).__name__}; it must be "
      f"{expected.__name__}"
    )


def shown(value: Any) -> str:
  """`repr`, shortened; a whole number of thousands of digits has none."""
  try:
    return reprlib.repr(value)
  except ValueError:
    return "a number of thousands of digits"
