"""CIFAR-10 or CIFAR-100 with ResNet-18 as in the papers: 200 epochs.

    kfkd run --config=configs/cifar.py:data=cifar100,noise=asymmetric,rate=0.4

`protocol=paper` selects on half of the test set, three times, with clean
labels; `protocol=practitioner` on 5,000 examples carved from the training set,
whose labels are as noisy as the others. `runlocal` runs every stage in minutes
on a laptop, on made images of the same shape, to try things out; its numbers
mean nothing.
"""

from kfkd_jax import config as config_lib

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}


def get_config(args=""):
  """Arguments: data, noise (kind), rate, protocol, runlocal."""
  arguments = config_lib.parse_arguments(
    args,
    data="cifar10",
    noise="none",
    rate=0.4,
    protocol="paper",
    runlocal=False,
  )
  config_lib.check_choice("data", arguments.data, NUM_CLASSES)
  config = config_lib.default_config()
  config.data.name = arguments.data
  config_lib.set_noise(config, arguments.noise, arguments.rate)
  config.selection.num = 5000
  config_lib.set_protocol(config, arguments.protocol)
  config.augment.pad = 4
  config.augment.flip = True
  config.augment.cutout = 0
  config.model.name = "resnet18"
  config.optim.learning_rate = 0.1
  config.optim.weight_decay = 5e-4
  config.optim.decay_everything = True
  config.train.epochs = 200
  config.train.batch_size = 128
  config.history.resume_every = 5
  config.predictions.train = False
  if arguments.runlocal:
    num_classes = NUM_CLASSES[arguments.data]
    config.data.name = (
      f"synthetic/num_classes={num_classes},num_train=512,num_test=256"
    )
    config.selection.num = 128
    config.model.width = 4
    config.train.epochs = 2
    config.compare.independent = 2
    config.compare.bootstrap_samples = 200
  return config
