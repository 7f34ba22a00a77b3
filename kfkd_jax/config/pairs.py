"""Keys that are possible alone and impossible together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from kfkd_jax import data, models
from kfkd_jax.catalogue import FUSIONS, METHODS
from kfkd_jax.config.ranges import shown
from kfkd_jax.config.tree import ConfigError


class Refusal(NamedTuple):
  """One way in which keys contradict each other.

  Attributes:
    wrong: true of a config whose keys do.
    message: what is said then, a template: `{section.key}` is the value of a
      key, `{found}` what `wrong` returned.
  """

  wrong: Callable[[ml_collections.ConfigDict], Any]
  message: str


_HAS_TRANSITION = ("symmetric", "pair", "asymmetric")


def _remembers(objective: str) -> bool:
  return "memory" in METHODS[objective].needs


def _only_some_have(option: str) -> Refusal:
  """Of an option of `model` that the chosen network does not take."""

  def wrong(c: ml_collections.ConfigDict) -> str | None:
    if not c.model[option] or option in models.option_names(c.model.name):
      return None
    fitting = (n for n in models.MODELS if option in models.option_names(n))
    return ", ".join(fitting)

  return Refusal(
    wrong,
    f"model.{option}={{model.{option}!r}} does not fit model.name="
    "{model.name!r}; it fits {found}",
  )


def _only_hub_sets_have(key: str) -> Refusal:
  """Of the name of a column for another set than one of the Hub."""
  return Refusal(
    lambda c: c.data[key] is not None and not data.is_of_hub(c.data.name),
    f"data.{key}={{data.{key}!r}} goes with data.name=hf:..., not with "
    "{data.name!r}",
  )


def _leaves_nothing(key: str, of: str) -> Refusal:
  """Of epochs in `optim` that take all of a run."""
  return Refusal(
    # A student whose epochs are None has its teacher's.
    lambda c: c[of].epochs is not None and c.optim[key] >= c[of].epochs,
    f"optim.{key}={{optim.{key}}} leaves nothing of {of}.epochs="
    f"{{{of}.epochs}}",
  )


# The network's before all, then by section; of several the first is named.
REFUSALS = (
  *map(
    _only_some_have,
    ("stem", "patch", "remat", "drop_path", "dropout", "layer_scale"),
  ),
  Refusal(
    lambda c: (
      c.model.pretrained is not None and c.model.name in models.UNPUBLISHED
    ),
    "model.pretrained={model.pretrained!r} does not fit model.name="
    "{model.name!r}, for which nobody publishes weights",
  ),
  Refusal(
    lambda c: c.data.name in data.FOLDER_NAMES and c.data.root is None,
    "data.name={data.name!r} needs data.root, the folder it lies in",
  ),
  *map(_only_hub_sets_have, ("image_column", "label_column")),
  Refusal(
    lambda c: (
      (c.augment.crop_scale is not None or c.augment.rand_ops)
      and c.data.stream == "never"
    ),
    "augment.crop_scale and augment.rand_ops work on images that are decoded "
    "batch by batch; data.stream='never' has none",
  ),
  Refusal(
    lambda c: c.noise.kind in ("none", "field") and c.noise.rate,
    "noise.kind={noise.kind!r} takes no rate but noise.rate={noise.rate}; name "
    "a noise.kind that has one (symmetric, pair, asymmetric, instance), or set "
    "noise.rate=0",
  ),
  Refusal(
    lambda c: c.noise.kind == "field" and c.noise.field is None,
    "noise.kind='field' needs noise.field, the name of a label column; it is "
    "None",
  ),
  Refusal(
    lambda c: (
      c.noise.kind != "field"
      and c.noise.field is not None
      and shown(c.noise.field)
    ),
    "noise.field={found} needs noise.kind='field', not {noise.kind!r}",
  ),
  Refusal(
    lambda c: c.noise.correct != "drop" and c.noise.corrections is None,
    "noise.correct={noise.correct!r} needs noise.corrections, a table of wrong "
    "labels; it is None",
  ),
  Refusal(
    lambda c: c.train.objective == "mixup" and c.augment.mixup,
    "train.objective='mixup' mixes by baselines.mixup, and augment.mixup="
    "{augment.mixup} would once more; leave it at 0",
  ),
  Refusal(
    lambda c: _remembers(c.train.objective) and c.augment.mixup,
    "train.objective={train.objective!r} remembers what was said of each "
    "image, of which augment.mixup={augment.mixup} leaves none as it is; leave "
    "it at 0",
  ),
  Refusal(
    lambda c: (
      c.optim.schedule in ("restarts", "triangular") and c.optim.cycle is None
    ),
    "optim.schedule={optim.schedule!r} needs optim.cycle, epochs of a cycle; "
    "it is None",
  ),
  Refusal(
    lambda c: (
      c.model.pretrained is None
      and (c.optim.backbone_rate < 1 or c.optim.head_epochs)
    ),
    "optim.backbone_rate={optim.backbone_rate} and optim.head_epochs="
    "{optim.head_epochs} need model.pretrained, weights to begin with; it is "
    "None",
  ),
  *(
    _leaves_nothing(key, of)
    for key in ("head_epochs", "warmup_epochs")
    for of in ("train", "distill")
  ),
  Refusal(
    lambda c: c.train.batch_size % c.train.micro_batches,
    "train.batch_size={train.batch_size} does not divide into "
    "train.micro_batches={train.micro_batches}",
  ),
  Refusal(
    lambda c: c.train.objective != "ce" and c.train.label_smoothing,
    "train.objective={train.objective!r} has no use for train.label_smoothing="
    "{train.label_smoothing}; leave it at 0",
  ),
  Refusal(
    lambda c: c.history.unit == "step" and c.history.every < 1,
    "history.unit='step' needs whole steps but history.every={history.every}",
  ),
  Refusal(
    lambda c: (
      c.history.keep is not None
      and (c.selection.source, c.selection.labels) != ("train", "clean")
    ),
    "history.keep={history.keep} judges by clean labels of points carved from "
    "train; it needs selection.source='train' and selection.labels='clean', "
    "got {selection.source!r} and {selection.labels!r}",
  ),
  Refusal(
    lambda c: (
      c.fuse.transition == "known"
      and (c.selection.labels == "clean" or c.noise.kind not in _HAS_TRANSITION)
    ),
    "fuse.transition='known' needs selection.labels='noisy' and a noise.kind "
    "with a matrix, got {selection.labels!r} and {noise.kind!r}",
  ),
  Refusal(
    lambda c: (
      c.fuse.transition == "estimated" and c.selection.labels == "clean"
    ),
    "fuse.transition='estimated' needs selection.labels='noisy', got 'clean'",
  ),
  Refusal(
    lambda c: c.distill.rounds == 1 and c.distill.rounds_stop != "none",
    "distill.rounds_stop={distill.rounds_stop!r} needs distill.rounds above 1; "
    "it is 1",
  ),
  Refusal(
    lambda c: c.distill.hard and c.distill.temperature != 1.0,
    "distill.hard=True has no use for distill.temperature="
    "{distill.temperature}; leave it at 1",
  ),
  Refusal(
    lambda c: c.distill.label_loss != "ce" and c.distill.alpha == 1,
    "distill.label_loss={distill.label_loss!r} has no weight beside "
    "distill.alpha={distill.alpha}; choose another alpha",
  ),
  Refusal(
    lambda c: c.distill.label_loss != "ce" and c.distill.inputs == "extra",
    "distill.label_loss={distill.label_loss!r} finds no given labels where "
    "distill.inputs='extra'",
  ),
  Refusal(
    lambda c: _remembers(c.distill.label_loss) and c.augment.mixup,
    "distill.label_loss={distill.label_loss!r} remembers what was said of each "
    "image, of which augment.mixup={augment.mixup} leaves none as it is; leave "
    "it at 0",
  ),
  Refusal(
    lambda c: (
      c.fuse.transition == "estimated" and "online_fusion" in c.compare.methods
    ),
    "compare.methods names online_fusion, which fuses before there is a "
    "history that fuse.transition='estimated' could tell the noise from",
  ),
  Refusal(
    lambda c: _remembers(c.train.objective) and "fge" in c.compare.methods,
    "compare.methods names fge, which continues from a checkpoint, where "
    "nothing is left of what train.objective={train.objective!r} remembers",
  ),
  Refusal(
    lambda c: (
      not c.predictions.train
      and ", ".join(m for m in c.compare.methods if m.startswith("audit_"))
    ),
    "compare.methods names {found}, for which predictions.train must be True; "
    "it is False",
  ),
  Refusal(
    lambda c: c.audit.folds is not None and not c.predictions.train,
    "audit.folds={audit.folds} needs predictions.train=True; it is False",
  ),
  Refusal(
    lambda c: sorted(
      set(c.export.models or ())
      - {"final", *FUSIONS, *(f"{t}_kd" for t in c.distill.teachers)}
    ),
    "export.models names {found}, whom distill.teachers={distill.teachers} "
    "does not teach",
  ),
)


def check(config: ml_collections.ConfigDict) -> None:
  """Raises a `ConfigError` naming the first pair that contradicts itself."""
  for refusal in REFUSALS:
    if found := refusal.wrong(config):
      raise ConfigError(refusal.message.format(found=found, **config))
