"""Every key once: its default, its range, its meaning, and what it decides."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
from etils import epath
from ml_collections import config_dict

from kfkd_jax import data, models, optim, published
from kfkd_jax.catalogue import (
  ASKED,
  EXPORTABLE,
  FUSIONS,
  METHODS,
  OBJECTIVES,
)
from kfkd_jax.config.ranges import (
  ANY,
  MAX_COUNT,
  RATES,
  SHARES,
  WEIGHTS,
  Range,
  ascending,
  at_least,
  between,
  one_of,
  some_of,
)
from kfkd_jax.data import corrections
from kfkd_jax.data.splits import NOISE_KINDS, NUM_HALVINGS
from kfkd_jax.training import clock


class Following(NamedTuple):
  """A default that follows another key until it is set itself.

  Attributes:
    key: which.
    choose: the default for a value of it.
  """

  key: str
  choose: Callable[[Any], Any]


class Key(NamedTuple):
  """One key of the configuration.

  Attributes:
    name: dotted.
    default: its value unless set; None, or a `Following`, with `kind` where it
      may be None.
    range: what it may be.
    meaning: what it does.
    decides: the stages whose outcome it changes by itself, `lesson` for what a
      student is taught with; none if it decides no number. Later stages depend
      on it through what they read.
    kind: the type of a key that may be None.
    later: whether digests leave it out at its default, so that what was made
      before there was such a key is still known as made alike.
  """

  name: str
  default: Any
  range: Range
  meaning: str
  decides: tuple[str, ...] = ()
  kind: type | None = None
  later: bool = False


_TRAIN = ("train",)
_FUSE = ("fuse",)
_SPLIT = ("train", "fuse")
_DISTILL = ("distill",)
_LESSON = ("distill", "lesson")
_RIVALS = ("rivals",)
_COMPARE = ("compare",)
_REPORT = ("report",)
_SHOWN = ("report", "audit")
_INTERVALS = ("compare", "audit")
_EXPORT = ("export",)
_BOOL = ANY  # the type says it all
_NO_RATE = ("none", "field")
# Asked of the dictionary itself, into which programs may put their own.
_NETWORK = Range(", ".join(sorted(models.MODELS)), lambda v: v in models.MODELS)
_FLOATS = ("float32", "bfloat16")
PARTS = (
  "steps", "distillation", "together", "stage", "predictions", "storage",
  "devices", "fusion",
)  # fmt: skip
PEERS = (
  "cnn_8px", "cnn_28px", "cnn_28px_wide", "cnn_32px", "resnet18_32px",
)  # fmt: skip
_STREAMS = {
  "model": "initial parameters",
  "order": "order of examples",
  "augment": "crops, flips, mixing",
  "noise": "choice of wrong labels",
  "selection": "choice of who selects and who tests",
}

# fmt: off
KEYS = (
  Key("seed", 0, at_least(0),
      "Root of all randomness; `seeds` may set single streams apart from it.",
      _TRAIN),
  *(Key(f"seeds.{stream}", None, at_least(0), f"Of the {what}.", _TRAIN, int)
    for stream, what in _STREAMS.items()),

  Key("data.name", "digits",
      Range(f"such as {', '.join(data.NAMES)}, hf:OWNER/NAME, hf:FOLDER", bool),
      "A builder of this package, any TFDS image set, or one of the Hugging "
      "Face Hub (hf:OWNER/NAME or hf:OWNER/NAME/SUBSET) or a folder of Parquet "
      "files like those.", _TRAIN),
  Key("data.dir", None, ANY, "TFDS directory; None: its own.", _TRAIN, str),
  Key("data.num_train", None, at_least(1), "None: all that is left.", _TRAIN,
      int),
  Key("data.root", None,
      Range("an existing folder",
            lambda v: epath.Path(v).expanduser().is_dir()),
      "Folder of files fetched by hand: an image set's, those of mnist, "
      "fashion_mnist, cifar10 or cifar100 as published, or human labels.",
      _TRAIN, str),
  Key("data.image_size", None, between(1, 2**14),
      "Side of the centre square cut from every image; None keeps the images.",
      _TRAIN, int),
  Key("data.crop_share", 1.0, between(0.01, 1),
      "Of the short side that the square takes; 0.875 is ImageNet's habit.",
      _TRAIN),
  Key("data.test_share", 0.2, between(0, 1),
      "Of an image_folder or hf: set that has no splits.", _TRAIN),
  *(Key(f"data.{part}_column", None, ANY,
        f"Of an hf: set with several {kind} columns, which one.", _TRAIN, str,
        later=True)
    for part, kind in (("image", "Image"), ("label", "ClassLabel"))),
  Key("data.skip_broken", False, _BOOL,
      "Read all images once, leave out what fails.", _TRAIN),
  Key("data.follow_links", False, _BOOL,
      "Read images that links have outside of data.root."),
  Key("data.stream", "auto", one_of(data.STREAMING),
      "Whether images stay on disk and are decoded batch by batch: always, "
      "never, or auto, if they exceed memory_limit or views are asked for "
      "(crop_scale, rand_ops) that are made while decoding.", _TRAIN),
  Key("data.memory_limit", 4.0, between(0, 2**20), "GiB of decoded images.",
      _TRAIN),
  Key("data.workers", 0, between(0, 1024),
      "Processes that decode training batches; 0: threads."),

  Key("noise.kind",
      Following("data.name", lambda v: "pair" if v == "digits" else "none"),
      one_of(NOISE_KINDS),
      "How labels are made wrong. What is not asked for is done to the "
      "demonstration's digits alone: pair there, none for any other data.",
      _TRAIN),
  Key("noise.rate",
      Following("noise.kind", lambda v: 0.0 if v in _NO_RATE else 0.4),
      between(0, 1),
      "Share of labels that change; kinds that have none take none.", _TRAIN),
  Key("noise.field", None, ANY, "Label column for noise.kind=field.", _TRAIN,
      str),

  Key("noise.corrections", None,
      Range("an existing file", lambda v: epath.Path(v).expanduser().exists()),
      "A table of wrong training labels, such as an audit.csv.", _TRAIN, str,
      later=True),
  Key("noise.correct", "drop", one_of(corrections.WAYS),
      "What is done about them: dropped, relabelled as suggested, or taken as "
      "given to count in the loss by the table's column weight.", _TRAIN,
      later=True),

  Key("selection.source", "train", one_of(("train", "test")),
      "Who selects: points carved from train, or half of test.", _SPLIT),
  Key("selection.num",
      Following("data.name", lambda v: 400 if v == "digits" else None),
      at_least(1),
      "Examples carved from train; half of test needs none. 400 of digits; "
      "None, for any other data: a fifth of the training examples, at most "
      "400.", _SPLIT, int),
  Key("selection.labels", "clean", one_of(("clean", "noisy")),
      "What the selecting points carry.", _FUSE),
  Key("selection.halvings", 3, between(1, NUM_HALVINGS),
      "Of the test split, where selection.source is test.", _FUSE),

  Key("augment.pad", 1, between(0, 64),
      "Pixels around a random crop to the old size.", _TRAIN),
  Key("augment.flip", False, _BOOL, "Mirror half of the images.", _TRAIN),
  Key("augment.cutout", 2, between(0, 512), "Side of a blanked square.",
      _TRAIN),
  Key("augment.mixup", 0.0, between(0, 100),
      "Beta concentration; 0: no mixing. Never for rows that remember what was "
      "said of each image.", _TRAIN),
  Key("augment.crop_scale", None, ascending(1e-4, 1),
      "Lowest and highest share of the area of a random resized crop, such as "
      "0.08,1.0; None: no such crop.", _TRAIN, tuple),
  Key("augment.crop_ratio", (0.75, 1.3333), ascending(0.01, 100),
      "Of the random resized crop's width to its height.", _TRAIN),
  Key("augment.rand_ops", 0, between(0, data.MAX_RAND_OPS),
      "Operations of RandAugment; 0: none.", _TRAIN),
  Key("augment.rand_magnitude", 9.0, between(0, data.MAX_MAGNITUDE),
      "Their strength.", _TRAIN),

  Key("model.name", "cnn", _NETWORK, "The network.",
      _TRAIN),
  Key("model.width", None, between(1, 2**14), "None: the model's own.", _TRAIN,
      int),
  Key("model.stem", None, one_of(models.STEMS),
      "For small (cifar) or large (imagenet) images; None: cifar for resnet18 "
      "and resnet34, imagenet for the others that have a choice.", _TRAIN, str),
  Key("model.patch", None, between(1, 512), "Side of a token; None: 16.",
      _TRAIN, int),
  Key("model.drop_path", 0.0, between(0, 0.99),
      "Chance that an image skips the last block in training; less for earlier "
      "ones (stochastic depth).", _TRAIN, later=True),
  Key("model.dropout", 0.0, between(0, 0.99),
      "Chance that a number is left out in training: in a vit after every "
      "layer, elsewhere before the classifier.", _TRAIN, later=True),
  Key("model.layer_scale", None, between(0, 1e3),
      "What the factors of a block's output begin with; None: the model's own.",
      _TRAIN, float, later=True),
  Key("model.remat", False, _BOOL,
      "Compute activations twice instead of keeping them.", _TRAIN),
  Key("model.pretrained", None,
      Range("an existing .safetensors file",
            lambda v: v.endswith(".safetensors") and epath.Path(v).exists()),
      "Weights in timm's or Hugging Face's naming, from which every network's "
      "training starts, with a fresh head where the classes differ.", _TRAIN,
      str),
  Key("model.dtype", "float32", one_of(_FLOATS),
      "Of the computation; parameters stay float32.", _TRAIN),

  Key("optim.name", "sgd", one_of(optim.OPTIMIZERS), "The optimiser.", _TRAIN),
  Key("optim.learning_rate", 0.1, between(0, 1e3), "Its peak.", _TRAIN),
  Key("optim.momentum", 0.9, between(0, 1), "Of SGD.", _TRAIN),
  Key("optim.nesterov", False, _BOOL, "Nesterov's form of it.", _TRAIN),
  Key("optim.weight_decay", 5e-4, between(0, 10), "Of weights.", _TRAIN),
  Key("optim.decay_everything", False, _BOOL,
      "Biases and norm parameters as well.", _TRAIN),
  Key("optim.clip_norm", None, between(1e-12, 1e12), "None: never clip.",
      _TRAIN, float),
  Key("optim.schedule", "cosine", one_of(optim.SCHEDULES),
      "Of the learning rate, see optim.make_schedule.", _TRAIN),
  Key("optim.warmup_epochs", 0, at_least(0), "In which the rate rises.",
      _TRAIN),
  Key("optim.head_epochs", 0, at_least(0),
      "In which nothing but the last layer of pretrained weights learns.",
      _TRAIN, later=True),
  Key("optim.backbone_rate", 1.0, between(0, 1),
      "What all but the last layer of pretrained weights has of the learning "
      "rate.", _TRAIN, later=True),
  Key("optim.boundaries", (0.5, 0.75), SHARES, "step: shares of the run.",
      _TRAIN),
  Key("optim.decay", 0.1, between(0, 1), "step: factor at each boundary.",
      _TRAIN),
  Key("optim.low", 0.1, between(0, 1),
      "swa and triangular: lowest share of the learning rate.", _TRAIN),
  Key("optim.cycle", None, at_least(1), "Epochs: restarts, triangular, swa.",
      _TRAIN, int),
  Key("optim.hold", 0.75, between(0, 1),
      "swa: share of the run after which the rate is low.", _TRAIN),

  Key("train.epochs", 60, between(1, 10**6), "Passes over the training set.",
      _TRAIN),
  Key("train.batch_size", 64, between(1, 2**20), "Of all devices together.",
      _TRAIN),
  Key("train.micro_batches", 1, between(1, 2**20),
      "Pieces that a device learns one after another.", _TRAIN),
  Key("train.label_smoothing", 0.0, between(0, 1),
      "Share of a label that all classes get.", _TRAIN),
  Key("train.objective", "ce", one_of(OBJECTIVES),
      "What the teacher and the independent networks learn from the given "
      "labels, with the options of the row of that name.", _TRAIN, later=True),
  Key("train.average_decay", None, between(0, 1), "EMA; None: none.", _TRAIN,
      float),

  Key("history.every", 1.0,
      Range("a whole number, or one over a whole number such as 0.25",
            lambda v: 1e-4 <= v <= MAX_COUNT
            and (v if v >= 1 else 1 / v) % 1 == 0),
      "Between kept checkpoints: epochs, a part of one such as 0.25, or steps.",
      _TRAIN),
  Key("history.unit", "epoch", one_of(clock.UNITS), "Of history.every.",
      _TRAIN),
  Key("history.keep", None, at_least(2),
      "At most so many checkpoints: the newest, and those that remember most "
      "of what it has wrong; epochs that are dropped are still diagnosed. "
      "None: all.", _TRAIN, int),
  Key("history.dtype", "float32", one_of(_FLOATS),
      "bfloat16: half the disk; the last stays whole.", _TRAIN),
  Key("history.resume_every", 10, at_least(1), "Epochs between full states."),

  Key("predictions.batch_size", 1024, between(1, 2**20),
      "Examples predicted at once.", _TRAIN),
  Key("predictions.dtype", "float32", one_of(("float32", "float16")),
      "float16: half the disk.", _TRAIN),
  Key("predictions.train", True, _BOOL,
      "Training points too: what noise was memorised.", _TRAIN),

  Key("fuse.window", 1, between(0, 10**6),
      "Neighbours averaged on either side.", _FUSE),
  Key("fuse.num_epsilons", 101, between(2, 10**5), "Grid of mixing weights.",
      _FUSE),
  Key("fuse.max_members", 20, between(1, 10**4), "Of Knowledge Fusion.", _FUSE),
  Key("fuse.transition", "none", one_of(("none", "known", "estimated")),
      "What the mixture is told of its labels' noise: as made, or as the "
      "history of the selecting points tells it.", _FUSE),
  Key("fuse.tolerance", 1e-3, between(1e-7, 1),
      "Optimality gap of the mixture.", _FUSE),

  Key("distill.teachers", FUSIONS, some_of(FUSIONS), "Fusions to distil.",
      _DISTILL),
  Key("distill.targets", "cached", one_of(("cached", "live")),
      "live: teachers see the student's view.", _LESSON),
  Key("distill.hard", False, _BOOL, "Learn the teacher's top class only.",
      _LESSON),
  Key("distill.alpha", 1.0, between(0, 100),
      "Weight of the teacher; the rest: given labels.", _LESSON),
  Key("distill.label_loss", "ce",
      # Mixing is of images: a student's are mixed by augment.mixup.
      one_of(tuple(name for name in OBJECTIVES if name != "mixup")),
      "What a student learns from given labels, by the names of "
      "train.objective; alpha below 1 gives it weight.", _LESSON, later=True),
  Key("distill.temperature", 1.0, between(1e-2, 100),
      "Softens teacher and student.", _LESSON),
  Key("distill.epochs", None, between(1, 10**6), "None: train.epochs.",
      _DISTILL, int),
  Key("distill.model", None, _NETWORK,
      "A student of another kind than its teacher; None: of the same.",
      _DISTILL, str),
  Key("distill.width", None, between(1, 2**14),
      "None: the width that distill.model has of its own, or the teacher's.",
      _DISTILL, int),
  Key("distill.rounds", 1, between(1, 1000), "Students of students.", _DISTILL),
  Key("distill.rounds_stop", "none", one_of(("none", "accuracy", "nll")),
      "What must get better on the selecting points for another round.",
      _DISTILL),
  Key("distill.inputs", "train", one_of(("train", "extra", "both")),
      "Images the student sees; extra ones carry the teacher's labels.",
      _LESSON),
  Key("distill.extra", "rest", Range("rest, or the name of a data set", bool),
      "What is extra: the rest that data.num_train leaves over, or the train "
      "split of another data set, by name.", _LESSON),

  Key("compare.independent", 3, between(1, 1000),
      "Networks of the independent ensemble; 1: none.", _RIVALS),
  Key("compare.methods", (), some_of(ASKED), "More rows, each trained here.",
      _RIVALS),
  Key("compare.temperature", (), some_of(tuple(METHODS)),
      "Rows to repeat at a temperature fitted on select.", _COMPARE),
  Key("compare.test_time", (), some_of(tuple(METHODS)),
      "Rows to repeat over views of the test images.", _COMPARE),
  Key("compare.views", 8, between(2, 1000),
      "Of each image, itself the first.", _COMPARE),
  Key("compare.patience", 10, at_least(1),
      "Checkpoints that early_stopping waits.", _COMPARE),
  Key("compare.bootstrap_samples", 2000, between(100, 10**6),
      "Of the intervals.", _INTERVALS),
  Key("compare.level", 0.95, between(0.5, 0.9999), "Of the intervals.",
      _INTERVALS),
  Key("compare.sets", None, between(0.5, 0.9999),
      "Promised coverage of prediction sets, whose size and coverage are then "
      "measured on halves of the test points; None: none are made.", _COMPARE,
      float, later=True),

  Key("baselines.swa_start", 0.75, between(0, 0.999),
      "Share of the run that is not averaged.", _RIVALS),
  Key("baselines.swa_rate", 0.5, between(0, 1),
      "Rate while averaging, of optim.learning_rate.", _RIVALS),
  Key("baselines.swa_cycle", None, at_least(1), "Epochs; None: constant.",
      _RIVALS, int),
  Key("baselines.snapshot_cycles", 5, between(1, 10**4), "Restarts.", _RIVALS),
  Key("baselines.fge_start", 0.8, between(0, 1),
      "Share of the teacher's run that comes before.", _RIVALS),
  Key("baselines.fge_cycle", 4,
      Range("an even number, 2 or more",
            lambda v: 2 <= v <= MAX_COUNT and v % 2 == 0), "Epochs.", _RIVALS),
  Key("baselines.fge_rates", (0.5, 0.005), RATES,
      "High, low, of optim.learning_rate.", _RIVALS),
  Key("baselines.gce_q", 0.7, between(0, 1),
      "0: cross entropy, 1: mean absolute error.", _RIVALS),
  Key("baselines.sce_weights", (0.1, 1.0), WEIGHTS,
      "Of cross entropy and its reverse.", _RIVALS),
  Key("baselines.elr_weight", 3.0, between(0, 1e3), "Of ELR's term.", _RIVALS),
  Key("baselines.elr_decay", 0.7, between(0, 1),
      "Of the remembered predictions.", _RIVALS),
  Key("baselines.label_smoothing", 0.1, between(0, 1),
      "Of the row label_smoothing.", _RIVALS),
  Key("baselines.mixup", 1.0, between(1e-3, 100),
      "Beta concentration of the row mixup.", _RIVALS),
  Key("baselines.audit_correct", "relabel", one_of(corrections.WAYS),
      "What the rows audit_retrain do about accused labels.", _RIVALS,
      later=True),

  Key("strategy.teacher", "kf", one_of(FUSIONS),
      "Fusion that teaches the students below.", _RIVALS),
  Key("strategy.label_weight", 1.0, between(0, 100),
      "Of given labels beside a teacher's loss.", _RIVALS),
  Key("strategy.temperature", 4.0, between(1e-2, 100),
      "Of sckd, dkd and dist.", _RIVALS),
  Key("strategy.air_share", None, between(0, 1), "None: the agreement.",
      _RIVALS, float),
  Key("strategy.ps_kd_share", 0.8, between(0, 1),
      "Of past predictions, in the last epoch.", _RIVALS),
  Key("strategy.self_adaptive_start", 0.3, between(0, 1),
      "Share of the run before labels move.", _RIVALS),
  Key("strategy.self_adaptive_decay", 0.9, between(0, 1),
      "Of the moving labels.", _RIVALS),
  Key("strategy.coverage_share", 0.5, between(0, 1),
      "Of online_coverage's past in the targets at the end of the run; it "
      "rises evenly to it.", _RIVALS, later=True),
  Key("strategy.sckd_threshold", 0.0, between(-1, 1),
      "Least cosine with the labels' gradient.", _RIVALS),
  Key("strategy.sckd_by_group", False, _BOOL,
      "Decide for each group of parameters.", _RIVALS),
  Key("strategy.dkd_weights", (1.0, 8.0), WEIGHTS,
      "Of the label's class, of the others.", _RIVALS),
  Key("strategy.dist_weights", (2.0, 2.0), WEIGHTS,
      "Between classes, between examples.", _RIVALS),
  Key("strategy.relational_weights", (25.0, 50.0), WEIGHTS,
      "Of distances, of angles.", _RIVALS),
  Key("strategy.standardized_weight", 9.0, between(0, 1e3),
      "Of the teacher's term.", _RIVALS),
  Key("strategy.xi", 1.5, between(0, 100),
      "xi_kd: share of the teacher; above 1, away from labels.", _RIVALS),
  Key("strategy.neighbours", 20, between(1, 10**4),
      "propagation: of each example.", _RIVALS),
  Key("strategy.propagation_decay", 0.99, between(0, 0.9999),
      "How far labels reach, below 1.", _RIVALS),

  Key("audit.folds", None, between(2, 100),
      "Of out-of-sample predictions by so many networks, each trained on all "
      "folds but one; None: by the teacher's history.", ("audit",), int,
      later=True),

  Key("report.num_examples", 12, between(0, 1000),
      "Forgotten or accused examples shown as pictures.", _SHOWN),
  Key("report.paper", None, one_of(tuple(published.COLUMNS)),
      "A column of `kfkd_jax.published` to set beside ours; None: no such "
      "table.", _REPORT, str),

  Key("export.models", None,
      Range(f"a tuple of {EXPORTABLE}, each at most once",
            lambda v: v and some_of(EXPORTABLE).fits(v)),
      "None: all.", _EXPORT, tuple),
  Key("export.parity_examples", 256, between(1, 10**6),
      "Test images to compare with the live model.", _EXPORT),
  Key("export.saved_model", True, _BOOL,
      "As well, where TensorFlow is installed.", _EXPORT),
  Key("export.onnx", True, _BOOL,
      "As well, where jax2onnx and onnxruntime are installed.", _EXPORT),
  Key("export.license", None,
      Range("an identifier of the Hub, such as mit, apache-2.0 or cc-by-4.0",
            lambda v: bool(re.fullmatch(r"[a-z0-9][a-z0-9.-]{2,}", v))),
      "Of the models, for their card; None: the card names none.", _EXPORT, str,
      later=True),

  Key("bench.parts", PARTS, some_of((*PARTS, "audit", "peer")),
      "What is measured; audit: of a history as large as bench.fusion says; "
      "peer: the steps of bench.peers, here and in PyTorch."),
  Key("bench.peers", PEERS, some_of(PEERS), "Networks of the part peer."),
  Key("bench.rounds", 16, between(1, 10**4),
      "Of which the lower quartile counts."),
  Key("bench.steps", 20, between(1, 10**4), "Training steps of a round."),
  Key("bench.epochs", 5, between(1, 10**4), "Of the whole train stage."),
  Key("bench.members", 4, between(1, 10**4),
      "Teachers of the live distillation."),
  Key("bench.checkpoints", 16, between(1, 10**4),
      "Restored, and predicted with."),
  Key("bench.fusion", "memory", one_of(("tiny", "memory", "disk")),
      "History to fuse or to audit; disk takes 9 or 4 GB."),

  Key("runtime.compilation_cache", True, _BOOL,
      "Keep compiled programs between runs."),
  Key("runtime.tensorboard", False, _BOOL,
      "Event files beside metrics.jsonl."),
  Key("runtime.wandb", None,
      Range("a project's name of 1 to 128 characters without any of /\\#?%:",
            lambda v: 1 <= len(v) <= 128 and not set(v) & set("/\\#?%:")),
      "Weights & Biases project.", kind=str),
  Key("runtime.ensemble_axis", 1, between(1, 2**14),
      "Devices that share out the teachers of a live distillation, each its "
      "part; the others share out the batch. It divides the devices."),
  Key("runtime.profile", False, _BOOL,
      "A trace of a few steps, in runs/teacher/profile."),
)
# fmt: on

BY_NAME = {key.name: key for key in KEYS}


def default_config() -> ml_collections.ConfigDict:
  """Digits with 40 % pair label noise and a small convolutional network."""
  config = ml_collections.ConfigDict()
  followed = {k.default.key for k in KEYS if isinstance(k.default, Following)}
  references: dict[str, config_dict.FieldReference] = {}
  for key in KEYS:
    *sections, name = key.name.split(".")
    node = config
    for section in sections:
      if section not in node:
        node[section] = ml_collections.ConfigDict()
      node = node[section]
    if isinstance(key.default, Following):
      node[name] = _reference(key, references[key.default.key])
    elif key.kind is not None:
      node[name] = config_dict.placeholder(key.kind)
    elif key.name in followed:
      node[name] = config_dict.FieldReference(key.default)
    else:
      node[name] = key.default
    if key.name in followed:
      references[key.name] = node.get_ref(name)
  return config


class _Op(NamedTuple):
  """What a reference applies when it is read; the first value is its own."""

  fn: Callable[..., Any]
  args: tuple[config_dict.FieldReference, ...]


def _reference(
  key: Key, other: config_dict.FieldReference
) -> config_dict.FieldReference:
  """A value that follows another key's until it is set itself."""
  choose = key.default.choose
  kind = key.kind or type(choose(other.get()))
  op = _Op(lambda _, value: choose(value), (other,))
  return config_dict.FieldReference(kind(), field_type=kind, op=op)
