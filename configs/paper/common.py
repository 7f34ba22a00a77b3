"""What the columns of the paper's Tables 1 to 3 have in common.

Not a configuration to run by itself: each file beside it is one column and says
which numbers it is to reach. Numbers stand in `kfkd_jax/published.py`.

The paper tells in its main text: networks, data, kinds and rates of noise, that
half of the test set with clean labels selects for the other half, three times,
and that baselines take as many checkpoints as Knowledge Fusion. Epochs,
learning rates, batch sizes, augmentation and the noise's generator stand in an
appendix that we have not read: the recipes here are usual ones for these
networks, so the first row, `final`, may well be a few points away.
"""

import math

from kfkd_jax import config as config_lib

NUM_CLASSES = {
  "cifar100": 100,
  "tiny_imagenet": 200,
  "animal10n": 10,
  "imagenet2012": 1000,
}
# As their authors train them on ImageNet.
DROP_PATH = {"vit_base": 0.1, "convnext_large": 0.5, "maxvit_tiny": 0.2}


def get_config(args=""):
  """Arguments: data, model, noise, rate, paper (the column), trained, dryrun.

  `root` is the folder of a set that is fetched by hand, for ImageNet the one in
  which TFDS prepared it (`data.dir`). `trained` adds the
  methods of Table 3 that train otherwise. `dryrun` takes two steps on made
  images with the same number of classes and a narrow network of the same kind.
  """
  arguments = config_lib.parse_arguments(
    args,
    data="cifar100",
    model="resnet18",
    noise="none",
    rate=0.0,
    paper="cifar100",
    root="",
    trained=False,
    dryrun=False,
  )
  config = config_lib.default_config()
  config.data.name = arguments.data
  if arguments.root:
    by_tfds = arguments.data == "imagenet2012"
    config.data["dir" if by_tfds else "root"] = arguments.root
  config.noise.kind = arguments.noise
  config.noise.rate = arguments.rate
  config.model.name = arguments.model
  config.report.paper = arguments.paper
  config_lib.set_protocol(config, "paper")
  # Rows that these tables do not have, for comparison.
  config.compare.independent = 3
  config.distill.teachers = ("kf", "mixture")
  if arguments.trained:
    config.compare.methods = ("fge", "swa", "snapshot")
  config.augment.cutout = 0
  config.augment.flip = True
  config.predictions.train = False
  config.history.resume_every = 1
  if arguments.data != "imagenet2012":
    set_small_recipe(config)
  elif arguments.model == "resnet50":
    set_resnet50_recipe(config)
  else:
    set_adamw_recipe(config)
  if arguments.dryrun:
    set_dryrun(config, NUM_CLASSES[arguments.data])
  return config


def set_small_recipe(config):
  """ResNet-18 on images of 32 or 64 pixels."""
  config.augment.pad = 4
  config.optim.learning_rate = 0.1
  config.optim.weight_decay = 5e-4
  config.optim.decay_everything = True
  config.train.epochs = 200
  config.train.batch_size = 128


def set_large_images(config):
  """Random resized crops of 224 pixels; a centre square for testing."""
  config.augment.pad = 0
  config.augment.crop_scale = (0.08, 1.0)
  config.data.image_size = 224
  config.data.crop_share = 0.875
  config.data.workers = 8
  config.model.dtype = "bfloat16"
  config.predictions.dtype = "float16"


def set_resnet50_recipe(config):
  """SGD for 100 epochs."""
  set_large_images(config)
  config.optim.learning_rate = 0.4
  config.optim.weight_decay = 1e-4
  config.optim.warmup_epochs = 5
  config.train.epochs = 100
  config.train.batch_size = 1024


def set_adamw_recipe(config):
  """AdamW for 300 epochs with all that keeps these networks from memorising."""
  config.model.drop_path = DROP_PATH[config.model.name]
  set_large_images(config)
  config.augment.rand_ops = 2
  config.augment.mixup = 0.8
  config.optim.name = "adamw"
  config.optim.learning_rate = 1e-3
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 1.0
  config.optim.warmup_epochs = 20
  config.train.epochs = 300
  config.train.batch_size = 1024
  config.train.label_smoothing = 0.1
  # A twentieth to a tenth of the checkpoints is said to be enough.
  config.history.every = 5.0
  config.history.dtype = "bfloat16"


def set_dryrun(config, num_classes):
  """Two steps in all; its numbers mean nothing."""
  num = 16 * math.ceil(num_classes / 16)
  config.data.name = (
    f"synthetic/num_classes={num_classes},num_train={num},num_test={num}"
  )
  config.data.dir = config.data.root = None
  config.data.image_size = None
  config.data.workers = 0
  config.model.width = 8
  config.optim.warmup_epochs = min(config.optim.warmup_epochs, 1)
  config.history.every = 1.0
  config.train.epochs = 2
  config.train.batch_size = num
  config.predictions.batch_size = num
  config.compare.independent = 2
  config.compare.bootstrap_samples = 100
