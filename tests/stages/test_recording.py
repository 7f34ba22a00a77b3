"""A loop of one's own, noted and reported; with other frameworks if there."""

import jax
import numpy as np
import pytest
from flax import nnx

import kfkd_jax as kfkd
from kfkd_jax import cli, predictions, recording

NUM, NUM_CLASSES = 60, 3
LABELS = np.arange(NUM) % NUM_CLASSES
POINTS = np.eye(NUM_CLASSES, dtype=np.float32)[LABELS]


def network(seed=0):
  return nnx.Linear(NUM_CLASSES, NUM_CLASSES, rngs=nnx.Rngs(seed))


def softmax(net):
  return jax.nn.softmax(net(POINTS))


def test_what_a_network_says_is_kept_as_it_was(tmp_path):
  record = kfkd.Recorder(tmp_path / "p", LABELS, softmax, ids=LABELS + 7)
  net, said = network(), []
  for epoch in (1, 2, 5):
    record(epoch, net)
    said.append(np.asarray(softmax(net)))
    net.kernel[...] += 0.1  # the network lives on
  found = predictions.read_foreign(tmp_path / "p")
  np.testing.assert_array_equal(found.probs, said)
  assert found.epochs.tolist() == [1, 2, 5]
  np.testing.assert_array_equal(found.labels, LABELS)
  np.testing.assert_array_equal(found.ids, LABELS + 7)


def test_a_run_that_goes_on_forgets_what_it_had_beyond(tmp_path):
  first = kfkd.Recorder(tmp_path, LABELS, softmax)
  for epoch in (1, 2, 3):
    first(epoch, network(epoch))
  again = kfkd.Recorder(tmp_path, LABELS, softmax)
  again(2, network(9))
  assert again.store.epochs == [1, 2]
  np.testing.assert_array_equal(again.store[1], softmax(network(9)))
  with pytest.raises(ValueError, match="other examples"):
    kfkd.Recorder(tmp_path, LABELS[::-1], softmax)(3, network())


def test_its_report_is_that_of_the_command(tmp_path, capsys):
  rng = np.random.default_rng(0)
  notes = {}
  for name in ("select", "test"):
    notes[name] = kfkd.Recorder(tmp_path / name, LABELS, lambda probs: probs)
    for epoch in range(1, 6):
      notes[name](epoch, rng.dirichlet(np.ones(NUM_CLASSES), NUM))
  said = notes["select"].report(tmp_path / "page", test=notes["test"])
  code = cli.main(
    [
      "report",
      f"--predictions={tmp_path / 'select'}",
      f"--test={tmp_path / 'test'}",
    ]
  )
  assert code == 0 and said in capsys.readouterr().out
  assert sorted(p.name for p in (tmp_path / "page").iterdir()) == sorted(
    p.name for p in (tmp_path / "select.report").iterdir()
  )
  for name in ("results.jsonl", "index.html"):
    page = (tmp_path / "page" / name).read_bytes()
    assert page == (tmp_path / "select.report" / name).read_bytes()


@pytest.mark.parametrize(
  ("predict", "message"),
  [
    (lambda net: net(POINTS), "are these logits"),
    (lambda net: softmax(net)[:-1], r"must give \[60, K\]"),
    (lambda net: softmax(net)[0], r"must give \[60, K\]"),
  ],
)
def test_what_is_no_probability_is_refused(predict, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    kfkd.Recorder(tmp_path / "p", LABELS, predict)(1, network())
  assert not (tmp_path / "p").exists()


def test_folders_that_nobody_recorded_are_named(tmp_path, capsys):
  (tmp_path / "p").mkdir()
  assert cli.main(["diagnose", f"--predictions={tmp_path / 'p'}"]) == 2
  assert "no Recorder wrote it" in capsys.readouterr().err


def test_nothing_is_written_into_a_run(tmp_path, capsys):
  folder = tmp_path / "run" / "predictions"
  kfkd.Recorder(folder, LABELS, softmax)(1, network())
  (tmp_path / "run" / "manifest.json").write_text("{}")
  assert cli.main(["diagnose", f"--predictions={folder}"]) == 2
  assert "lies in a run" in capsys.readouterr().err
  assert len(list((tmp_path / "run").iterdir())) == 2


def torch_network(torch):
  torch.manual_seed(0)
  layers = torch.nn.Linear(NUM_CLASSES, NUM_CLASSES), torch.nn.Dropout(0.5)
  return torch.nn.Sequential(*layers)


def test_pytorch_predicts_without_dropout_and_trains_on(tmp_path):
  torch = pytest.importorskip("torch")
  net = torch_network(torch)
  points = torch.tensor(POINTS)
  batches = [(points[:50], 0), (points[50:], 0)]
  record = kfkd.Recorder(
    tmp_path, LABELS, lambda net: recording.torch_probabilities(net, batches)
  )
  record(1, net)
  assert net.training
  with torch.no_grad():
    said = net[0](points).softmax(-1).numpy()
  np.testing.assert_allclose(record.store[0], said, rtol=1e-6)
  net.eval()
  record(2, net)
  assert not net.training


@pytest.mark.filterwarnings("ignore")  # of theirs
def test_lightning_notes_every_epoch(tmp_path):
  lightning, torch = map(pytest.importorskip, ("lightning", "torch"))

  class Module(lightning.LightningModule):
    def __init__(self):
      super().__init__()
      self.net = torch_network(torch)

    def forward(self, x):
      return self.net(x)

    def training_step(self, batch):
      return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
      return torch.optim.SGD(self.parameters(), 0.1)

  points = torch.tensor(POINTS)
  data = torch.utils.data.TensorDataset(points, torch.tensor(LABELS))
  loader = torch.utils.data.DataLoader(data, batch_size=20)
  record = kfkd.Recorder(
    tmp_path / "p",
    LABELS,
    lambda net: recording.torch_probabilities(net, loader),
  )
  module = Module()
  lightning.Trainer(
    max_epochs=3,
    accelerator="cpu",
    default_root_dir=tmp_path,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    callbacks=[recording.lightning_callback(record)],
  ).fit(module, loader)
  assert record.store.epochs == [1, 2, 3]
  with torch.no_grad():
    last = module.net[0](points).softmax(-1).numpy()
  np.testing.assert_allclose(record.store[2], last, rtol=1e-5)
  assert not np.allclose(record.store[0], last, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of theirs
def test_the_hugging_face_trainer_notes_every_epoch(tmp_path):
  names = ("transformers", "torch", "accelerate")
  transformers, torch, _ = map(pytest.importorskip, names)

  class Model(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.net = torch_network(torch)

    def forward(self, points, labels=None):
      logits = self.net(points)
      loss = None
      if labels is not None:
        loss = torch.nn.functional.cross_entropy(logits, labels)
      return transformers.modeling_outputs.SequenceClassifierOutput(
        loss=loss, logits=logits
      )

  rows = [
    {"points": torch.tensor(x), "labels": int(y)}
    for x, y in zip(POINTS, LABELS)
  ]
  batches = [{"points": torch.tensor(POINTS)}]
  record = kfkd.Recorder(
    tmp_path / "p",
    LABELS,
    lambda net: recording.torch_probabilities(net, batches),
  )
  model = Model()
  transformers.Trainer(
    model,
    transformers.TrainingArguments(
      str(tmp_path / "out"),
      num_train_epochs=2,
      per_device_train_batch_size=20,
      learning_rate=0.1,
      report_to=[],
      save_strategy="no",
      use_cpu=True,
      disable_tqdm=True,
    ),
    train_dataset=rows,
    callbacks=[recording.trainer_callback(record)],
  ).train()
  assert record.store.epochs == [1, 2]
  with torch.no_grad():
    last = model.net[0](torch.tensor(POINTS)).softmax(-1).numpy()
  np.testing.assert_allclose(record.store[1], last, rtol=1e-5)
