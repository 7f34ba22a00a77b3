"""Every key, its default and its meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict


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
  # A package builder or any TFDS image set.
  name = c.data.name = config_dict.FieldReference("digits")
  c.data.dir = config_dict.placeholder(str)  # TFDS directory; None: its own
  c.data.num_train = config_dict.placeholder(int)  # None: all that is left
  # Folder of files fetched by hand: an image set's, those of mnist,
  # fashion_mnist, cifar10 or cifar100 as published, or human labels.
  c.data.root = config_dict.placeholder(str)
  # Side of the centre square cut from every image, which is the whole short
  # side or a share of it (0.875 is ImageNet's habit); None keeps the images.
  c.data.image_size = config_dict.placeholder(int)
  c.data.crop_share = 1.0
  c.data.test_share = 0.2  # of an image_folder that has no splits
  c.data.skip_broken = False  # read all images once, leave out what fails
  c.data.follow_links = False  # read images that links have outside of root
  # Whether images stay on disk and are decoded batch by batch: always, never,
  # or auto, if they exceed memory_limit or views are asked for (crop_scale,
  # rand_ops) that are made while decoding.
  c.data.stream = "auto"
  c.data.memory_limit = 4.0  # GiB of decoded images
  c.data.workers = 0  # processes that decode training batches; 0: threads

  c.noise = ml_collections.ConfigDict()
  # One of NOISE_KINDS. What is not asked for is done to the demonstration's
  # digits alone: pair there, none for any other data.
  kind = c.noise.kind = _following(
    str, lambda name: "pair" if name == "digits" else "none", name
  )
  # Share of labels that change; kinds that have none take none.
  c.noise.rate = _following(
    float, lambda kind: 0.0 if kind in ("none", "field") else 0.4, kind
  )
  c.noise.field = config_dict.placeholder(str)  # label column for kind=field

  c.selection = ml_collections.ConfigDict()
  c.selection.source = "train"  # carved from train, or half of test
  # Examples carved from train; half of test needs none. 400 of digits; None,
  # for any other data: a fifth of the training examples, at most 400.
  c.selection.num = _following(
    int, lambda name: 400 if name == "digits" else None, name
  )
  c.selection.labels = "clean"  # or noisy: what the selecting points carry
  c.selection.halvings = 3  # of the test split, where source is test

  c.augment = ml_collections.ConfigDict()
  c.augment.pad = 1  # pixels around a random crop to the old size
  c.augment.flip = False  # mirror half of the images
  c.augment.cutout = 2  # side of a blanked square
  # Beta concentration; 0: no mixing. Never for rows that remember what was said
  # of each image: elr, air_previous, ps_kd, self_adaptive.
  c.augment.mixup = 0.0
  # Lowest and highest share of the area of a random resized crop, such as
  # 0.08,1.0; None: no such crop.
  c.augment.crop_scale = config_dict.placeholder(tuple)
  c.augment.crop_ratio = (0.75, 1.3333)  # of its width to its height
  c.augment.rand_ops = 0  # operations of RandAugment; 0: none
  c.augment.rand_magnitude = 9.0  # their strength, up to 10

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
  # constant, cosine, step, restarts, triangular or swa: see optim.make_schedule
  c.optim.schedule = "cosine"
  c.optim.warmup_epochs = 0
  c.optim.boundaries = (0.5, 0.75)  # step: shares of the run
  c.optim.decay = 0.1  # step: factor at each boundary
  c.optim.low = 0.1  # swa and triangular: lowest share of the learning rate
  c.optim.cycle = config_dict.placeholder(int)  # restarts, triangular, swa
  c.optim.hold = 0.75  # swa: share of the run after which the rate is low

  c.train = ml_collections.ConfigDict()
  c.train.epochs = 60
  c.train.batch_size = 64  # of all devices together
  c.train.micro_batches = 1  # pieces that a device learns one after another
  c.train.label_smoothing = 0.0
  c.train.average_decay = config_dict.placeholder(float)  # EMA; None: none

  c.history = ml_collections.ConfigDict()
  # Between kept checkpoints: epochs, a part of one such as 0.25, or steps.
  c.history.every = 1.0
  c.history.unit = "epoch"  # or step
  # At most so many of them: the newest, and those that remember most of what it
  # has wrong; epochs that are dropped are still diagnosed. None: all.
  c.history.keep = config_dict.placeholder(int)
  c.history.dtype = (
    "float32"  # or bfloat16: half the disk; the last stays whole
  )
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
  # A student of another kind than its teacher; None: of the same.
  c.distill.model = config_dict.placeholder(str)
  # None: the width that distill.model has of its own, or the teacher's.
  c.distill.width = config_dict.placeholder(int)
  c.distill.rounds = 1  # students of students
  # none, or what must get better on the selecting points for another round:
  # accuracy or nll.
  c.distill.rounds_stop = "none"
  # Images the student sees: train, extra (with the teacher's labels) or both.
  c.distill.inputs = "train"
  # What is extra: the rest that data.num_train leaves over, or the train split
  # of another data set, by name.
  c.distill.extra = "rest"

  c.compare = ml_collections.ConfigDict()
  c.compare.independent = 3  # networks of the independent ensemble; 1: none
  # More rows, each trained here: uniform_soup, greedy_soup, swa, snapshot, fge,
  # independent_equal_budget, gce, sce, elr, label_smoothing, mixup; and the
  # strategies air, air_soft, air_previous, ps_kd, self_adaptive, mutual,
  # online_fusion, sckd, dkd, dist, standardized_kd, relational_kd, xi_kd,
  # partial_kd, agreement_kd, propagation.
  c.compare.methods = ()
  c.compare.temperature = ()  # rows to repeat at a temperature fitted on select
  c.compare.test_time = ()  # rows to repeat over views of the test images
  c.compare.views = 8  # of each image, itself the first
  c.compare.patience = 10  # checkpoints that early_stopping waits
  c.compare.bootstrap_samples = 2000
  c.compare.level = 0.95  # of the intervals

  c.baselines = ml_collections.ConfigDict()  # of the rows they are named after
  c.baselines.swa_start = 0.75  # share of the run that is not averaged
  c.baselines.swa_rate = 0.5  # rate while averaging, of optim.learning_rate
  c.baselines.swa_cycle = config_dict.placeholder(int)  # epochs; None: constant
  c.baselines.snapshot_cycles = 5
  c.baselines.fge_start = 0.8  # share of the teacher's run that comes before
  c.baselines.fge_cycle = 4  # epochs, even
  c.baselines.fge_rates = (0.5, 0.005)  # high, low, of optim.learning_rate
  c.baselines.gce_q = 0.7  # 0: cross entropy, 1: mean absolute error
  c.baselines.sce_weights = (0.1, 1.0)  # of cross entropy and its reverse
  c.baselines.elr_weight = 3.0
  c.baselines.elr_decay = 0.7  # of the remembered predictions
  c.baselines.label_smoothing = 0.1
  c.baselines.mixup = 1.0  # Beta concentration

  c.strategy = (
    ml_collections.ConfigDict()
  )  # of the rows that compare.methods names
  c.strategy.teacher = (
    "kf"  # fusion that teaches the students below: or mixture
  )
  c.strategy.label_weight = 1.0  # of given labels beside a teacher's loss
  c.strategy.temperature = 4.0  # of sckd, dkd and dist
  c.strategy.air_share = config_dict.placeholder(float)  # None: the agreement
  c.strategy.ps_kd_share = 0.8  # of past predictions, in the last epoch
  c.strategy.self_adaptive_start = 0.3  # share of the run before labels move
  c.strategy.self_adaptive_decay = 0.9
  c.strategy.sckd_threshold = 0.0  # least cosine with the labels' gradient
  c.strategy.sckd_by_group = False  # decide for each group of parameters
  c.strategy.dkd_weights = (1.0, 8.0)  # of the label's class, of the others
  c.strategy.dist_weights = (2.0, 2.0)  # between classes, between examples
  c.strategy.relational_weights = (25.0, 50.0)  # of distances, of angles
  c.strategy.standardized_weight = 9.0
  c.strategy.xi = 1.5  # xi_kd: share of the teacher; above 1, away from labels
  c.strategy.neighbours = 20  # propagation: of each example
  c.strategy.propagation_decay = 0.99  # how far labels reach, below 1

  c.report = ml_collections.ConfigDict()
  c.report.num_examples = 12  # forgotten examples shown as pictures
  # A column of `kfkd_jax.published` to set beside ours; None: no such table.
  c.report.paper = config_dict.placeholder(str)

  c.export = ml_collections.ConfigDict()
  c.export.models = config_dict.placeholder(tuple)  # of EXPORTABLE; None: all
  c.export.parity_examples = 256  # test images to compare with the live model
  c.export.saved_model = True  # as well, where TensorFlow is installed
  c.export.onnx = True  # as well, where jax2onnx and onnxruntime are installed

  c.bench = ml_collections.ConfigDict()
  # "peer" as well: the steps of `bench.peers`, here and in PyTorch.
  c.bench.parts = (
    "steps", "stage", "predictions", "storage", "devices", "fusion",
  )  # fmt: skip
  c.bench.peers = (
    "cnn_8px", "cnn_28px", "cnn_28px_wide", "cnn_32px", "resnet18_32px",
  )  # fmt: skip
  c.bench.rounds = 16  # of which the lower quartile counts
  c.bench.steps = 20  # training steps of a round
  c.bench.epochs = 5  # of the whole train stage
  c.bench.members = 4  # teachers of the live distillation
  c.bench.checkpoints = 16  # restored, and predicted with
  c.bench.fusion = "memory"  # history to fuse: tiny, memory or disk (9 GB)

  c.runtime = ml_collections.ConfigDict()
  c.runtime.compilation_cache = True  # keep compiled programs between runs
  c.runtime.tensorboard = False  # event files beside metrics.jsonl
  c.runtime.wandb = config_dict.placeholder(str)  # Weights & Biases project
  # Devices that share out the teachers of a live distillation, each its part;
  # the others share out the batch. It must divide the number of devices.
  c.runtime.ensemble_axis = 1
  c.runtime.profile = False  # a trace of a few steps, in runs/teacher/profile
  return c


class _Op(NamedTuple):
  """What a reference applies when it is read; the first value is its own."""

  fn: Callable[..., Any]
  args: tuple[config_dict.FieldReference, ...]


def _following(
  kind: type, choose: Callable[..., Any], *others: config_dict.FieldReference
) -> config_dict.FieldReference:
  """A default that follows other keys until it is set itself."""
  op = _Op(lambda _, *values: choose(*values), others)
  return config_dict.FieldReference(kind(), field_type=kind, op=op)
