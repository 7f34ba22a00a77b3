"""Every mistake in a configuration is one line that names key and value."""

import pathlib
import random
import re

import pytest
from etils import epath

from kfkd_jax import cli, files, stages
from kfkd_jax import config as config_lib
from kfkd_jax.run import tasks

DIGESTS = {
  "train": "c42095d686acd640",
  "fuse": "9fe73fdc4d4706fe",
  "distill": "0f12a8d70e691e82",
  "lesson": "28a0ff3758c54777",
  "export": "a4c20329919b231e",
}
LATER = ("data.crop_share", "optim.nesterov")
CONFIGS = sorted(pathlib.Path(__file__).parents[2].glob("configs/*.py"))
DIGITS = next(path for path in CONFIGS if path.name == "digits.py")


def configured(**changes):
  config = config_lib.default_config()
  for key, text in changes.items():
    config_lib.override(config, key.replace("__", "."), text)
  return config


@pytest.mark.parametrize(
  "arguments",
  [
    "",
    "runlocal",
    "noise=symmetric,rate=0.2",
    "noise=pair,protocol=practitioner",
    "protocol=paper,runlocal",
    "protocol=carved",
  ],
)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_are_valid(path, arguments):
  config = config_lib.load_config(f"{path}:{arguments}")
  config_lib.validate(config)
  said = dict(part.split("=") for part in arguments.split(",") if "=" in part)
  assert config.noise.kind == said.get("noise", config.noise.kind)
  for key, value in config_lib.PROTOCOLS.get(said.get("protocol"), {}).items():
    assert config.selection[key] == value


def test_arguments_of_config_files():
  config = config_lib.load_config(f"{DIGITS}:noise=pair,rate=0.25")
  assert (config.noise.kind, config.noise.rate) == ("pair", 0.25)


def test_changed_copies_know_the_types_of_keys_that_are_none():
  config = config_lib.default_config()
  own = config_lib.changed(config, {"model.width": 8, "data.dir": "3"})
  assert (own.model.width, own.data.dir) == (8, "3")
  assert (config.model.width, config.data.dir) == (None, None)
  with pytest.raises(config_lib.ConfigError, match=r"model.width='a' has type"):
    config_lib.changed(config, {"model.width": "a"})


def test_one_recipe_for_both_cifars():
  path = next(p for p in CONFIGS if p.name == "cifar.py")
  ten, hundred = (
    config_lib.load_config(f"{path}:data={name}").to_dict()
    for name in ("cifar10", "cifar100")
  )
  assert ten.pop("data")["name"] == "cifar10"
  assert hundred.pop("data")["name"] == "cifar100"
  assert ten == hundred
  assert ten["selection"]["source"] == "test"
  for arguments, message in (
    ("data=cifar", "data='cifar' .*cifar10, cifar100"),
    ("protocol=own", "protocol='own' .*paper, practitioner"),
    ("dataset=cifar10", "'dataset' is unknown"),
  ):
    with pytest.raises(config_lib.ConfigError, match=message):
      config_lib.load_config(f"{path}:{arguments}")


@pytest.mark.parametrize(
  ("text", "values"),
  [
    ("noise.kind=pair,symmetric", ("pair", "symmetric")),
    ("noise.rate=.20, 4e-1", ("0.2", "0.4")),
    ("noise.rate=1", ("1.0",)),
    ("model.width=None,8", ("None", "8")),
    ("augment.flip=True,False", ("True", "False")),
    ("distill.teachers=(kf,mixture),kf,()", ("kf,mixture", "kf", "")),
    ("distill.teachers=('kf','mixture')", ("kf,mixture",)),
    ("optim.boundaries=(0.5,),(.3, .6)", ("0.5", "0.3,0.6")),
    (
      "data.name=digits,(synthetic/num_train=9,num_test=9)",
      ("digits", "synthetic/num_train=9,num_test=9"),
    ),
  ],
)
def test_grid_values_have_one_spelling(text, values):
  config = config_lib.default_config()
  (axis,) = config_lib.parse_grid([text], config)
  assert axis.values == values
  assert config.to_dict() == config_lib.default_config().to_dict()
  for value in values:  # which is read back as it was meant
    config_lib.override(config, axis.key, value)
    again = config_lib.parse_grid([f"{axis.key}=({value})"], config)
    assert again[0].values == (value,)


@pytest.mark.parametrize(
  ("texts", "message"),
  [
    (["noise.rates=0.1"], "--grid: .*'noise.rates' is unknown.*'noise.rate'"),
    (["noise=pair"], "'noise' is unknown"),
    (["noise.rate=0.2,0.20"], "gives noise.rate=0.2 twice"),
    (["noise.rate=0.1", "noise.rate=0.2"], "names noise.rate twice"),
    (["noise.rate"], "'noise.rate' must be KEY=VALUE"),
    (["noise.rate="], "'noise.rate=' must be KEY=VALUE"),
    (["noise.rate=0.1,"], "--grid: noise.rate='' has type str"),
    (["noise.rate=high"], "--grid: noise.rate='high' has type str"),
    (["distill.teachers=(kf"], "parenthesis without its other"),
    (["distill.teachers=kf)"], "parenthesis without its other"),
    (["seed=1,2"], "--grid takes no seed; --seeds"),
  ],
)
def test_mistakes_in_a_grid_are_one_line(texts, message):
  with pytest.raises(config_lib.ConfigError, match=message) as caught:
    config_lib.parse_grid(texts, config_lib.default_config())
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("train.epochs", "7", 7),
    ("noise.rate", "1", 1.0),
    ("noise.rate", "1e-1", 0.1),
    ("augment.flip", "True", True),
    ("model.name", "mlp", "mlp"),
    ("model.width", "8", 8),
    ("model.width", "None", None),
    ("model.pretrained", "None", None),
    ("data.dir", "None", None),
    ("data.dir", "3", "3"),
    ("optim.boundaries", "(0.1,0.2)", (0.1, 0.2)),
    ("optim.boundaries", "0.1,0.2", (0.1, 0.2)),
    ("distill.teachers", "kf", ("kf",)),
    ("distill.teachers", "", ()),
    ("distill.teachers", "kf,mixture", ("kf", "mixture")),
  ],
)
def test_overrides_take_the_type_of_their_key(key, text, value):
  config = config_lib.default_config()
  config_lib.override(config, key, text)
  config_lib.validate(config)
  found = config_lib.get(config, key)
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"history__every": "0.3"}, "history.every=0.3 .*one over a whole"),
    ({"history__every": "1.5"}, "history.every=1.5 .*a whole number"),
    ({"history__every": "0"}, "history.every=0.0 is not possible"),
    (
      {"history__every": "0.5", "history__unit": "step"},
      "history.unit='step' needs whole steps but history.every=0.5",
    ),
    (
      {"train__micro_batches": "3"},
      "train.batch_size=64 does not divide into train.micro_batches=3",
    ),
    ({"train__epoch": "3"}, "'train.epoch' is unknown.*'train.epochs'"),
    ({"train": "3"}, "'train' is unknown"),
    ({"model__name__x": "3"}, "'model.name.x' is unknown"),
    ({"train__epochs": "ten"}, "train.epochs='ten' has type str.*int"),
    ({"train__epochs": "2.5"}, "train.epochs=2.5 has type float"),
    ({"train__epochs": "None"}, "train.epochs=None has type NoneType"),
    ({"augment__flip": "yes"}, "augment.flip='yes' has type str.*bool"),
    ({"noise__rate": "[0.1]"}, "noise.rate=.* has type list"),
    ({"train__epochs": "0"}, "train.epochs=0 .*allowed: 1 to"),
    ({"noise__rate": "1.5"}, "noise.rate=1.5 .*allowed: 0 to 1"),
    ({"noise__rate": "-0.1"}, "noise.rate=-0.1"),
    ({"noise__kind": "flip"}, "noise.kind='flip' .*symmetric, pair"),
    ({"model__name": "vgg"}, "model.name='vgg' .*allowed: cnn"),
    ({"model__stem": "s2d"}, "model.stem='s2d' .*allowed: cifar, imagenet"),
    ({"model__patch": "0"}, "model.patch=0 .*allowed: 1 to"),
    ({"model__patch": "4"}, "model.patch=4 .*model.name='cnn'; .*vit_tiny"),
    (
      {"model__name": "vit_tiny", "model__stem": "cifar"},
      "model.stem='cifar' .*model.name='vit_tiny'; it fits resnet18",
    ),
    ({"model__remat": "True"}, "model.remat=True does not fit .*'cnn'"),
    (
      {"model__pretrained": "a.safetensors"},
      "model.pretrained='a.safetensors' .*an existing .safetensors file",
    ),
    ({"model__pretrained": __file__}, "model.pretrained=.*safetensors file"),
    ({"optim__boundaries": "0.9,0.1"}, "optim.boundaries=.*ascending"),
    ({"optim__boundaries": "a,b"}, "optim.boundaries=.*ascending"),
    ({"distill__teachers": "kf,kf"}, "distill.teachers=.*at most once"),
    ({"data__root": "nowhere"}, "data.root='nowhere' .*an existing folder"),
    (
      {"data__name": "image_folder"},
      "data.name='image_folder' needs data.root, the folder",
    ),
    ({"data__stream": "True"}, "data.stream='True' .*auto, always, never"),
    ({"data__image_size": "0"}, "data.image_size=0 .*allowed: 1 to"),
    ({"data__crop_share": "1.1"}, "data.crop_share=1.1 .*allowed: 0.01 to 1"),
    ({"data__test_share": "2"}, "data.test_share=2.0 .*allowed: 0 to 1"),
    ({"data__workers": "-1"}, "data.workers=-1 .*allowed: 0 to 1024"),
    ({"data__memory_limit": "-1"}, "data.memory_limit=-1.0 .*allowed: 0"),
    ({"augment__crop_scale": "0.5"}, "augment.crop_scale=.*two ascending"),
    ({"augment__crop_scale": "1,0.5"}, "augment.crop_scale=.*two ascending"),
    ({"augment__crop_ratio": "a,b"}, "augment.crop_ratio=.*two ascending"),
    ({"augment__rand_ops": "17"}, "augment.rand_ops=17 .*allowed: 0 to 16"),
    ({"augment__rand_magnitude": "11"}, "rand_magnitude=11.0 .*0 to 10"),
    (
      {"augment__rand_ops": "1", "data__stream": "never"},
      "augment.rand_ops work on images .*data.stream='never' has none",
    ),
    (
      {"noise__kind": "none", "noise__rate": "0.4"},
      "noise.kind='none' takes no rate but noise.rate=0.4",
    ),
    (
      {"data__name": "cifar10", "noise__rate": "0.2"},
      "noise.kind='none' takes no rate but noise.rate=0.2; name a noise.kind",
    ),
    (
      {"noise__kind": "field"},
      "noise.kind='field' needs noise.field",
    ),
    ({"noise__field": "worse"}, "noise.field='worse' needs noise.kind='field'"),
    ({"fuse__transition": "known"}, "needs selection.labels='noisy'.*'clean'"),
    (
      {"optim__warmup_epochs": "60"},
      "optim.warmup_epochs=60 leaves nothing of train.epochs=60",
    ),
    (
      {"distill__hard": "True", "distill__temperature": "2.0"},
      "distill.hard=True has no use for distill.temperature=2.0",
    ),
    ({"distill__rounds": "0"}, "distill.rounds=0 .*allowed: 1 to"),
    ({"distill__rounds_stop": "loss"}, "rounds_stop='loss' .*accuracy, nll"),
    (
      {"distill__rounds_stop": "nll"},
      "distill.rounds_stop='nll' needs distill.rounds above 1",
    ),
    ({"distill__inputs": "test"}, "distill.inputs='test' .*extra, both"),
    ({"distill__extra": ""}, "distill.extra='' .*name of a data set"),
    ({"strategy__teacher": "final"}, "strategy.teacher='final' .*mixture"),
    ({"strategy__air_share": "1.5"}, "strategy.air_share=1.5 .*0 to 1"),
    ({"strategy__dkd_weights": "1"}, "strategy.dkd_weights=.*two numbers"),
    (
      {"strategy__relational_weights": "1,-1"},
      "strategy.relational_weights=.*0 or more",
    ),
    ({"strategy__propagation_decay": "1"}, "propagation_decay=1.0 .*0.9999"),
    *[
      ({key: f"{values}"}, f"{key.split('__')[1]}=.*two ")
      for values in ("True,False", "1,True", f"1{'0' * 400},1")
      for key in (
        "strategy__dkd_weights", "baselines__sce_weights",
        "baselines__fge_rates", "augment__crop_scale",
      )
    ],
    ({"optim__boundaries": "0.5,True"}, "optim.boundaries=.*ascending"),
    ({"train__epochs": "True"}, "train.epochs=True has type bool"),
    ({"noise__rate": "True"}, "noise.rate=True has type bool"),
  ],
)  # fmt: skip
def test_mistakes_name_key_and_value(changes, message):
  with pytest.raises(config_lib.ConfigError, match=message) as caught:
    config_lib.validate(configured(**changes))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "changes",
  [
    {"name": "vit_small", "patch": "4", "remat": "True"},
    {"name": "resnet50", "stem": "cifar"},
    {"name": "wide_resnet28_10", "width": "32"},
  ],
)
def test_model_options_that_fit_each_other(changes):
  keys = {f"model__{key}": text for key, text in changes.items()}
  config = configured(**keys)
  config_lib.validate(config)
  for key, text in changes.items():
    assert str(config.model[key]) == text


def test_pretrained_weights_fit_models_that_have_some(tmp_path):
  path = tmp_path / "w.safetensors"
  path.touch()
  pretrained = {"model__pretrained": str(path)}
  config_lib.validate(configured(model__name="resnet18", **pretrained))
  with pytest.raises(
    config_lib.ConfigError, match=r"w\.safetensors' .*model.name='cnn'"
  ):
    config_lib.validate(configured(**pretrained))


def test_none_where_a_file_sets_it_is_refused():
  config = config_lib.default_config()
  with config.ignore_type():
    config.train.epochs = None
  with pytest.raises(config_lib.ConfigError, match=r"train\.epochs"):
    config_lib.validate(config)


def test_files_that_fail_are_one_line(tmp_path):
  missing = tmp_path / "no.py"
  with pytest.raises(config_lib.ConfigError, match="there is no file"):
    config_lib.load_config(str(missing))
  broken = tmp_path / "broken.py"
  broken.write_text("def get_config(args=''):\n  return 1 / 0\n")
  with pytest.raises(config_lib.ConfigError, match="ZeroDivisionError"):
    config_lib.load_config(str(broken))
  other = tmp_path / "config.json"
  other.write_text("{}")
  with pytest.raises(config_lib.ConfigError, match="not a Python file"):
    config_lib.load_config(str(other))


def test_unknown_and_ill_typed_arguments_of_files():
  spec = f"{CONFIGS[0]}:nois=pair"
  start = re.escape(f"--config: {CONFIGS[0]}: config argument 'nois'")
  with pytest.raises(config_lib.ConfigError, match=f"^{start}"):
    config_lib.load_config(spec)
  with pytest.raises(config_lib.ConfigError, match="rate='high' has type str"):
    config_lib.load_config(f"{CONFIGS[0]}:rate=high")


def test_unknown_key_set_by_a_file_is_refused():
  config = config_lib.default_config()
  config.train.epoch = 3
  with pytest.raises(
    config_lib.ConfigError, match=r"'train\.epoch' is unknown"
  ):
    config_lib.validate(config)


VALUES = [
  "0", "-1", "1", "7", "0.5", "-0.5", "1e400", "-1e400", "nan", "inf", "1e-300",
  "1" * 5000, "0x" + "f" * 5000, "-0x" + "f" * 5000, "9" * 400, "2147483648",
  "True", "False", "None", "", " ", "[]", "()", "{}", "{[]: 1}", "[['kf']]",
  "(nan,)", "(0.5, 'a')", "(0.9, 0.1)", "[1, 2", "('kf', 'kf')", "{'a': 1}",
  "1j", "b'x'", "...", "__import__('os')", "1if 2", r"'\d'", "'", "\n", "\0",
  "é" * 300, "\ud800", "(" * 300, "cosine", "kf", "field", "known", "noisy",
  "test", "float16", "live", "adamw", "step", "sgd", "resnet18", "../..",
]  # fmt: skip


def mutations(count, seed=0):
  """Argument lists that change a shipped config in one to three places."""
  generator = random.Random(seed)
  keys = [
    *config_lib.names(config_lib.default_config()),
    *("train", "model.name.x", "", ".", "train.", ".seed", "KEY", "sede"),
  ]
  for _ in range(count):
    arguments = ["run"]
    path = generator.choice([None, *CONFIGS])
    if path is not None:
      name = generator.choice(["noise", "rate", "runlocal", "nois", "", "="])
      text = f"{name}={generator.choice(VALUES)}"
      arguments.append(f"--config={path}:{generator.choice(['', text])}")
    for _ in range(generator.randint(1, 3)):
      values = generator.choice([VALUES, ["1", "2", "0.5", "True", "kf"]])
      key, value = generator.choice(keys), generator.choice(values)
      arguments.append(f"--config.{key}={value}")
    yield arguments


def test_no_mutation_of_a_shipped_config_ends_in_a_traceback(
  capsys, monkeypatch, tmp_path
):
  """Anything but the exit codes 0 and 2 would be an exception here."""
  taken = []
  monkeypatch.setattr(
    stages, "run", lambda config, workdir, **_: taken.append(config)
  )
  monkeypatch.setattr(cli, "_set_up_jax", lambda config: None)
  monkeypatch.setattr(cli, "_outcome", lambda *_: "")  # nothing was run
  codes = []
  for arguments in mutations(1000):
    codes.append(cli.main([*arguments, f"--workdir={tmp_path}"]))
    _, err = capsys.readouterr()
    assert err.count("\n") == (codes[-1] == 2), (arguments, err)
    assert len(err) < 1000 or "--config=" in arguments[1], arguments
  assert codes.count(0) == len(taken) > 20
  assert codes.count(2) > 500
  for config in taken:  # what was taken can be noted and compared
    files.digest(config.to_dict())
    config_lib.to_json(config)


@pytest.mark.parametrize(
  "line",
  [
    "config.train = 3",
    "config.seed = {'a': 1}",
    "config.noise.rate = 10**400",
    "config.train.epochs = 10**5000",
    "config.optim.learning_rate = float('nan')",
    "config.distill.teachers = (['kf'],)",
    "config.optim.boundaries = (float('nan'),)",
    "config.data.name = None",
    "del config.train",
    "config[3] = 1",
    "config = {}",
    "config = None",
  ],
)
def test_files_that_break_the_types_are_one_line(tmp_path, line):
  path = tmp_path / "odd.py"
  path.write_text(
    "from kfkd_jax import config as config_lib\n"
    "def get_config(args=''):\n"
    "  config = config_lib.default_config()\n"
    "  with config.unlocked(), config.ignore_type():\n"
    f"    {line}\n"
    "  return config\n"
  )
  with pytest.raises(config_lib.ConfigError) as caught:
    config_lib.read(str(path))
  assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"augment__pad": "8"}, "augment.pad=8 does not fit the 8x8 .*0 to 7"),
    ({"augment__cutout": "9"}, "augment.cutout=9 does not fit the 8x8"),
    (
      {"data__num_train": "32"},
      "train.batch_size=64 is twice the 32 .*'digits'",
    ),
    (
      {"selection__num": "1297"},
      "data.num_train=None and selection.num=1297 do not fit the 1297 training "
      "examples of digits; try selection.num=259",
    ),
    (
      {"data__num_train": "1000"},
      "data.num_train=1000 and selection.num=400 .*; try data.num_train=897",
    ),
    (
      {"noise__kind": "instance", "data__stream": "always"},
      "noise.kind='instance' reads all images .*'digits' stay on disk",
    ),
    ({"data__name": "mnist:9.9.9"}, "'mnist:9.9.9' cannot be loaded"),
  ],
)
def test_what_does_not_fit_the_data_is_found_before_training(changes, message):
  with pytest.raises(ValueError, match=message):
    tasks.load_task(configured(**changes))


def noise_of(config):
  return config.noise.kind, config.noise.rate


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, ("pair", 0.4)),
    ({"noise.kind": "symmetric"}, ("symmetric", 0.4)),
    ({"noise.rate": "0.1"}, ("pair", 0.1)),
    ({"noise.kind": "none"}, ("none", 0.0)),
    ({"data.name": "mnist"}, ("none", 0.0)),
    ({"data.name": "mnist", "noise.kind": "pair"}, ("pair", 0.4)),
    ({"noise.kind": "pair", "data.name": "mnist"}, ("pair", 0.4)),
  ],
)
def test_only_the_demonstration_is_given_noise_unasked(changes, expected):
  assert noise_of(config_lib.read(None, changes.items())) == expected
  changed = config_lib.changed(config_lib.default_config(), changes)
  assert noise_of(changed) == expected
  noted = config_lib.deciding(changed, "train")["noise"]
  assert (noted["kind"], noted["rate"]) == expected


def test_other_data_in_an_old_directory_is_given_no_noise(tmp_path):
  saved = epath.Path(tmp_path) / "config.json"
  saved.write_text(config_lib.sealed(config_lib.default_config()))
  other = config_lib.read(None, [("data.name", "mnist")], saved=saved)
  assert noise_of(other) == ("none", 0.0)
  assert other.selection.num is None
  saved.write_text(config_lib.sealed(other))
  assert noise_of(config_lib.read(None, saved=saved)) == ("none", 0.0)
  asked = config_lib.changed(other, {"noise.kind": "pair", "noise.rate": 0.4})
  saved.write_text(config_lib.sealed(asked))
  assert noise_of(config_lib.read(None, saved=saved)) == ("pair", 0.4)


@pytest.mark.parametrize(
  ("num_train", "split"),
  [(None, "360 train, 90 select, 50 test"), (100, "100 train, 20 select")],
)
def test_a_fifth_of_other_data_selects(num_train, split):
  config = config_lib.default_config()
  config.data.name = "synthetic/num_train=450,num_test=50"
  config.data.num_train = num_train
  line = tasks.first_line(config, tasks.load_task(config))
  assert line.startswith(f"{config.data.name}: {split}")
  assert "wrong" not in line


def test_made_noise_is_said_first():
  config = configured(noise__rate="1")
  line = tasks.first_line(config, tasks.load_task(config))
  assert line == (
    "digits: 897 train, 400 select, 500 test; 100 % of the training labels "
    "were made wrong (pair)"
  )
  config_lib.set_protocol(config, "paper")
  line = tasks.first_line(config, tasks.load_task(config))
  assert "1297 train, 500 test, half of which selects, 3 times;" in line


def test_working_directory_continues_with_its_own_config(tmp_path):
  saved = epath.Path(tmp_path) / "config.json"
  config = configured(
    train__epochs="7",
    model__width="3",
    distill__teachers="kf",
    optim__boundaries="0.25,0.5",
    data__dir="None",
    augment__flip="True",
  )
  saved.write_text(config_lib.sealed(config))
  assert config_lib.read(None, saved=saved) == config
  changed = config_lib.read(None, [("train.epochs", "9")], saved=saved)
  assert (changed.train.epochs, changed.model.width) == (9, 3)
  named = config_lib.read(str(DIGITS), saved=saved)
  assert named.train.epochs == 60


@pytest.mark.parametrize(
  "content", [{"train": {"epoch": 3}}, {"train": {"epochs": "x"}}, {"train": 3}]
)
def test_config_json_that_does_not_fit_is_one_line(tmp_path, content):
  saved = epath.Path(tmp_path) / "config.json"
  files.write_json(saved, {**content, "digest": files.digest(content)})
  with pytest.raises(
    config_lib.ConfigError, match=r"config\.json cannot be con"
  ):
    config_lib.read(None, saved=saved)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ('"pad": 1', '"pad": 2'),
    ('"digest": "', '"digest": "0'),
    ('"digest"', '"other"'),
  ],
)
def test_config_json_that_was_changed_is_not_continued(tmp_path, old, new):
  saved = epath.Path(tmp_path) / "config.json"
  text = config_lib.sealed(configured())
  assert old in text
  saved.write_text(text.replace(old, new))
  with pytest.raises(config_lib.ConfigError, match="remove it") as error:
    config_lib.read(None, saved=saved)
  assert str(saved) in str(error.value)


@pytest.mark.parametrize("content", ["3", "[]", '{"train"', ""])
def test_config_json_that_is_none_is_one_line(tmp_path, content):
  saved = epath.Path(tmp_path) / "config.json"
  saved.write_text(content)
  with pytest.raises(ValueError, match=r"config\.json") as error:
    config_lib.read(None, saved=saved)
  assert "\n" not in str(error.value)


def test_what_decides_a_stage_is_written_as_before():
  """Digests of it stand in every working directory: its form must stay."""
  config = config_lib.default_config()
  assert {
    stage: files.digest(config_lib.deciding(config, stage)) for stage in DIGESTS
  } == DIGESTS


def test_keys_that_came_later_count_only_where_they_are_set(monkeypatch):
  config = config_lib.default_config()
  before = config_lib.deciding(config, "train")
  known = [
    key._replace(later=True) if key.name in LATER else key
    for key in config_lib.KEYS
  ]
  monkeypatch.setattr("kfkd_jax.config.reading.KEYS", known)
  found = config_lib.deciding(config, "train")
  assert "data.crop_share" not in found and "nesterov" not in found["optim"]
  config.optim.nesterov = True
  found = config_lib.deciding(config, "train")
  assert found["optim"] == {**before["optim"], "nesterov": True}


def test_keys_that_were_set_are_what_a_command_sets_again():
  texts = {
    "seed": "3", "history.keep": "4", "train.average_decay": "0.9",
    "noise.field": "b", "predictions.train": "False", "fuse.tolerance": "1e-05",
    "distill.teachers": "kf", "compare.methods": "swa,gce",
    "compare.temperature": "", "baselines.fge_rates": "0.5,0.25",
  }  # fmt: skip
  config = config_lib.default_config()
  for key, text in texts.items():
    config_lib.override(config, key, text)
  found = dict(config_lib.set_keys(config))
  again = config_lib.default_config()
  for key, text in found.items():
    config_lib.override(again, key, text)
  assert again == config
  assert found == {k: v for k, v in texts.items() if v}  # "" is the default
