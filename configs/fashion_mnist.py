"""Fashion-MNIST with label noise: 70,000 real pictures of 28 x 28 pixels.

    kfkd run --config=configs/fashion_mnist.py:noise=pair,rate=0.4

`network=cnn` is for two cores and takes 20,000 pictures; `network=cnn64` learns
as many by heart, and `network=resnet18` takes all, both for an accelerator.
`protocol` says who selects, and with which labels
(`kfkd_jax/config/protocols.py`): by default 5,000 training pictures whose
labels are as noisy as the others. With `network=resnet18` and instance
noise of a published rate the page has the numbers of Yao et al. beside its own
(`kfkd_jax/published.py` says what differs). `runlocal` passes through
every stage in a minute.

The four IDX files are read from `--config.data.root=DIR`, from where Debian's
package `dataset-fashion-mnist` puts them, or are downloaded.
"""

from kfkd_jax import config as config_lib
from kfkd_jax import published

NETWORKS = ("cnn", "cnn64", "resnet18")


def get_config(args=""):
  """Arguments: network, noise (kind), rate, protocol, runlocal."""
  arguments = config_lib.parse_arguments(
    args,
    network="cnn",
    noise="instance",
    rate=0.4,
    protocol="practitioner",
    runlocal=False,
  )
  config_lib.check_choice("network", arguments.network, NETWORKS)
  config = config_lib.default_config()
  config.data.name = "fashion_mnist"
  config_lib.set_noise(config, arguments.noise, arguments.rate)
  config.selection.num = 5000
  config_lib.set_protocol(config, arguments.protocol)
  config.augment.pad = 2
  config.augment.flip = True
  config.augment.cutout = 0
  config.model.name = arguments.network.removesuffix("64")
  config.optim.decay_everything = True
  config.train.batch_size = 128
  if arguments.network == "cnn":
    config.data.num_train = 20_000
    config.train.epochs = 25
  elif arguments.network == "cnn64":
    # Wide, long and on unchanged pictures: wrong labels are learnt as well.
    config.data.num_train = 20_000
    config.model.width = 64
    config.train.epochs = 45
    config.train.batch_size = 256
    config.augment.pad = 0
    config.augment.flip = False
  else:
    config.train.epochs = 60
    config.history.resume_every = 5
    column = f"fashion_mnist_{round(100 * arguments.rate)}"
    if arguments.noise == "instance" and column in published.COLUMNS:
      config.report.paper = column
  if arguments.runlocal:
    config.data.num_train = 600
    config.selection.num = 200
    config.model.width = 4
    config.train.epochs = 3
    config.train.batch_size = 64
    config.compare.independent = 2
    config.compare.bootstrap_samples = 200
  return config
