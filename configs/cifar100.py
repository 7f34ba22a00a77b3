"""CIFAR-100 with ResNet-18 as in the papers: 200 epochs, half of test selects.

    kfkd run --config=configs/cifar100.py:noise=asymmetric,rate=0.4

`runlocal` runs every stage in minutes on a laptop, on made images of the same
shape, to try things out; its numbers mean nothing.
"""

from kfkd_jax import config as config_lib


def get_config(args=""):
  """Arguments: noise (kind), rate, runlocal."""
  arguments = config_lib.parse_arguments(
    args, noise="none", rate=0.4, runlocal=False
  )
  config = config_lib.default_config()
  config.data.name = "cifar100"
  config.noise.kind = arguments.noise
  config.noise.rate = 0.0 if arguments.noise == "none" else arguments.rate
  config.selection.source = "test"
  config.augment.pad = 4
  config.augment.flip = True
  config.augment.cutout = 0
  config.model.name = "resnet18"
  config.optim.learning_rate = 0.1
  config.optim.weight_decay = 5e-4
  config.optim.decay_everything = True
  config.train.epochs = 200
  config.train.batch_size = 128
  config.history.resume_every = 1
  config.predictions.train = False
  if arguments.runlocal:
    config.data.name = "synthetic/num_classes=100,num_train=512,num_test=256"
    config.model.width = 4
    config.train.epochs = 2
    config.compare.independent = 2
    config.compare.bootstrap_samples = 200
  return config
