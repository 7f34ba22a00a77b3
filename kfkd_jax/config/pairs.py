"""Keys that are possible alone and impossible together."""

from __future__ import annotations

import ml_collections

from kfkd_jax import data, models
from kfkd_jax.catalogue import FUSIONS, METHODS
from kfkd_jax.config.ranges import shown
from kfkd_jax.config.tree import ConfigError

_HAS_TRANSITION = ("symmetric", "pair", "asymmetric")


def check(config: ml_collections.ConfigDict) -> None:
  """Raises a `ConfigError` naming the first pair that contradicts itself."""
  _check_model(config.model)
  noise, kind = config.noise, config.noise.kind
  selection = config.selection
  taught = {f"{teacher}_kd" for teacher in config.distill.teachers}
  audited = [m for m in config.compare.methods if m.startswith("audit_")]
  untaught = sorted(
    set(config.export.models or ()) - {"final", *FUSIONS, *taught}
  )
  on_disk = config.augment.crop_scale is not None or config.augment.rand_ops
  distill = config.distill
  learnt, mixup = config.train.objective, config.augment.mixup
  remembers = "memory" in METHODS[learnt].needs
  pairs = [
    (
      config.data.name in data.FOLDER_NAMES and config.data.root is None,
      f"data.name={config.data.name!r} needs data.root, the folder it lies in",
    ),
    (
      on_disk and config.data.stream == "never",
      "augment.crop_scale and augment.rand_ops work on images that are decoded "
      "batch by batch; data.stream='never' has none",
    ),
    (
      distill.rounds == 1 and distill.rounds_stop != "none",
      f"distill.rounds_stop={distill.rounds_stop!r} needs distill.rounds above "
      "1; it is 1",
    ),
    (
      kind in ("none", "field") and noise.rate,
      f"noise.kind={kind!r} takes no rate but noise.rate={noise.rate}; name a "
      "noise.kind that has one (symmetric, pair, asymmetric, instance), or set "
      "noise.rate=0",
    ),
    (
      kind == "field" and noise.field is None,
      "noise.kind='field' needs noise.field, the name of a label column; it "
      "is None",
    ),
    (
      kind != "field" and noise.field is not None,
      f"noise.field={shown(noise.field)} needs noise.kind='field', not "
      f"{kind!r}",
    ),
    (
      noise.correct != "drop" and noise.corrections is None,
      f"noise.correct={noise.correct!r} needs noise.corrections, a table of "
      "wrong labels; it is None",
    ),
    (
      config.fuse.transition == "known"
      and (config.selection.labels == "clean" or kind not in _HAS_TRANSITION),
      "fuse.transition='known' needs selection.labels='noisy' and a noise.kind "
      f"with a matrix, got {config.selection.labels!r} and {kind!r}",
    ),
    (
      config.fuse.transition == "estimated"
      and config.selection.labels == "clean",
      "fuse.transition='estimated' needs selection.labels='noisy', got 'clean'",
    ),
    (
      config.fuse.transition == "estimated"
      and "online_fusion" in config.compare.methods,
      "compare.methods names online_fusion, which fuses before there is a "
      "history that fuse.transition='estimated' could tell the noise from",
    ),
    (
      config.history.unit == "step" and config.history.every < 1,
      f"history.unit='step' needs whole steps but history.every="
      f"{config.history.every}",
    ),
    (
      config.train.batch_size % config.train.micro_batches,
      f"train.batch_size={config.train.batch_size} does not divide into "
      f"train.micro_batches={config.train.micro_batches}",
    ),
    (
      learnt != "ce" and config.train.label_smoothing,
      f"train.objective={learnt!r} has no use for train.label_smoothing="
      f"{config.train.label_smoothing}; leave it at 0",
    ),
    (
      learnt == "mixup" and mixup,
      f"train.objective='mixup' mixes by baselines.mixup, and augment.mixup="
      f"{mixup} would once more; leave it at 0",
    ),
    (
      remembers and mixup,
      f"train.objective={learnt!r} remembers what was said of each image, of "
      f"which augment.mixup={mixup} leaves none as it is; leave it at 0",
    ),
    (
      remembers and "fge" in config.compare.methods,
      "compare.methods names fge, which continues from a checkpoint, where "
      f"nothing is left of what train.objective={learnt!r} remembers",
    ),
    (
      config.optim.schedule in ("restarts", "triangular")
      and config.optim.cycle is None,
      f"optim.schedule={config.optim.schedule!r} needs optim.cycle, "
      "epochs of a cycle; it is None",
    ),
    (
      config.history.keep is not None
      and (selection.source, selection.labels) != ("train", "clean"),
      f"history.keep={config.history.keep} judges by clean labels of points "
      "carved from train; it needs selection.source='train' and "
      f"selection.labels='clean', got {selection.source!r} and "
      f"{selection.labels!r}",
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
      distill.label_loss != "ce" and distill.alpha == 1,
      f"distill.label_loss={distill.label_loss!r} has no weight beside "
      f"distill.alpha={distill.alpha}; choose another alpha",
    ),
    (
      distill.label_loss != "ce" and distill.inputs == "extra",
      f"distill.label_loss={distill.label_loss!r} finds no given labels where "
      "distill.inputs='extra'",
    ),
    (
      "memory" in METHODS[distill.label_loss].needs and mixup,
      f"distill.label_loss={distill.label_loss!r} remembers what was said of "
      f"each image, of which augment.mixup={mixup} leaves none as it is; leave "
      "it at 0",
    ),
    (
      audited and not config.predictions.train,
      f"compare.methods names {', '.join(audited)}, for which "
      "predictions.train must be True; it is False",
    ),
    (
      config.audit.folds is not None and not config.predictions.train,
      f"audit.folds={config.audit.folds} needs predictions.train=True; it is "
      "False",
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
