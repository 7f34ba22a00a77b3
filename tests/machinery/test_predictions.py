import random
import tracemalloc
import zipfile

import numpy as np
import pytest
from etils import epath

from kfkd_jax import cli, files
from kfkd_jax.predictions import PredictionStore, Subset, read_foreign
from kfkd_jax.stages import diagnose


def make_probs(shape, seed=0):
  probs = np.random.default_rng(seed).random(shape).astype(np.float32)
  return probs / probs.sum(-1, keepdims=True)


@pytest.fixture
def store(tmp_path):
  store = PredictionStore.create(
    epath.Path(tmp_path) / "test", [0, 1, 2, 1], [4, 5, 6, 9], num_classes=3
  )
  for epoch in (10, 2, 7):
    store.write(epoch, make_probs((4, 3), epoch))
  return store


def test_is_an_array_in_order_of_epochs(store):
  assert store.shape == (3, 4, 3) and store.ndim == 3 and len(store) == 3
  assert store.epochs == [2, 7, 10]
  np.testing.assert_array_equal(store[1], make_probs((4, 3), 7))
  np.testing.assert_array_equal(PredictionStore(store.path).ids, [4, 5, 6, 9])


def test_subset_reads_rows(store):
  part = Subset(store, [3, 0])
  assert part.shape == (3, 2, 3) and len(part) == 3
  np.testing.assert_array_equal(part[0], make_probs((4, 3), 2)[[3, 0]])


def test_truncate_forgets_later_epochs(store):
  store.truncate(7)
  assert store.epochs == [2, 7]


def test_half_precision_store(tmp_path):
  store = PredictionStore.create(
    epath.Path(tmp_path) / "s", [0], [0], num_classes=2, dtype="float16"
  )
  store.write(1, make_probs((1, 2)))
  assert store.dtype == store[0].dtype == np.float16


def test_refuses_other_examples_and_shapes(store):
  with pytest.raises(ValueError, match="made for other examples"):
    PredictionStore.create(store.path, [0], [1], num_classes=3)
  with pytest.raises(ValueError, match="made for other examples"):
    PredictionStore.create(
      store.path, [0, 1, 2, 2], [4, 5, 6, 9], num_classes=3
    )
  with pytest.raises(ValueError, match=r"shape \(4, 2\), not \(4, 3\)"):
    store.write(11, np.zeros((4, 2)))


def test_flipped_byte_is_an_error_that_names_the_file(store):
  victim = store.path / "00007.npz"
  content = bytearray(victim.read_bytes())
  content[-150] ^= 1  # inside the array's bytes
  victim.write_bytes(bytes(content))
  with pytest.raises(ValueError, match=r"00007\.npz is damaged"):
    store.read(7)


def test_files_under_another_epoch_are_refused(store):
  two, seven = (store.path / f"{epoch:05d}.npz" for epoch in (2, 7))
  two.rename(store.path / "aside")
  seven.rename(two)
  (store.path / "aside").rename(seven)
  with pytest.raises(ValueError, match=r"00002\.npz belongs .*epoch 7, not 2"):
    store.read(2)
  assert not store.is_whole(7) and store.is_whole(10)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"owner": {"run": "b", "split": "test"}}, "run a, not b"),
    ({"owner": {"run": "a", "split": "select"}}, "split test, not select"),
    ({"labels": [0, 1, 2, 2]}, "examples .*, not "),
    ({"ids": [4, 5, 6, 7]}, "examples .*, not "),
  ],
)
def test_predictions_of_other_runs_and_examples_are_refused(
  tmp_path, change, message
):
  owner = {"run": "a", "split": "test"}
  own = {"labels": [0, 1, 2, 1], "ids": [4, 5, 6, 9], "owner": owner}
  stores = [
    PredictionStore.create(epath.Path(tmp_path) / name, num_classes=3, **what)
    for name, what in (("mine", own), ("other", {**own, **change}))
  ]
  stores[0].write(1, make_probs((4, 3)))
  (tmp_path / "mine" / "00001.npz").rename(tmp_path / "other" / "00001.npz")
  with pytest.raises(ValueError, match=message):
    stores[1].read(1)


def test_stores_of_versions_without_labels_are_read(store):
  files.write_npz(store.path / "00002.npz", probs=make_probs((4, 3)))
  np.testing.assert_array_equal(store.read(2), make_probs((4, 3)))


GOOD = {"probs": make_probs((2, 4, 3)), "labels": np.array([0, 1, 2, 1])}


def foreign(tmp_path, **changes):
  path = epath.Path(tmp_path) / "mine.npz"
  arrays = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
  files.write_npz(path, **arrays)
  return read_foreign(path)


def test_foreign_predictions_default_epochs(tmp_path):
  found = foreign(tmp_path)
  np.testing.assert_array_equal(found.epochs, [1, 2])
  assert found.labels.dtype == np.int32
  found = foreign(tmp_path, epochs=np.array([5, 9]))
  np.testing.assert_array_equal(found.epochs, [5, 9])


NAN = make_probs((2, 4, 3))
NAN[1, 2, 0] = np.nan


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"labels": None}, "no array 'labels'"),
    ({"probs": GOOD["probs"][0]}, r"must be \[checkpoints, examples, class"),
    ({"labels": np.eye(3, dtype=int)}, r"shape \(4,\) to go"),
    ({"labels": np.zeros(4)}, "must be integers, got float64"),
    ({"labels": np.array([0, 1, 2, 3])}, r"must lie in 0\.\.2, got 0\.\.3"),
    ({"probs": GOOD["probs"] * 7 - 1}, "are these logits"),
    ({"probs": GOOD["probs"] * 0.5}, "sum to 1"),
    ({"probs": NAN}, r"probs\[1\] holds NaN"),
    ({"probs": np.ones((2, 4, 3), int)}, "must be floating"),
    ({"probs": GOOD["probs"] + [-0.5, 0.25, 0.25]}, r"negative.*down to -0\.4"),
    ({"probs": GOOD["probs"].astype(complex)}, "floating.*got complex128"),
    ({"probs": GOOD["probs"].astype("V4")}, r"floating.*got \|V4"),
    ({"probs": np.ones((2, 4, 1))}, "at least .* 2 classes"),
    ({"probs": np.ones((0, 4, 3))}, "at least 1 checkpoint"),
    ({"probs": np.ones((2, 0, 3)), "labels": np.ones(0, int)}, "1 example"),
    ({"labels": np.zeros(4, bool)}, "must be integers, got bool"),
    ({"labels": np.array([0, -1, 2, 1])}, r"must lie in 0\.\.2, got -1"),
    ({"epochs": np.array([2, 1])}, r"2 ascending .* int64\[2\] \[2, 1\]"),
    ({"epochs": np.array([1])}, r"2 ascending .* int64\[1\]"),
    ({"epochs": np.array([1.0, np.nan])}, "2 ascending whole numbers"),
    ({"epochs": np.array(["a", "b"])}, "2 ascending whole numbers, got <U1"),
  ],
)
def test_foreign_mistakes_meet_their_own_message(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    foreign(tmp_path, **changes)


def test_half_precision_rows_need_not_sum_exactly(tmp_path):
  found = foreign(tmp_path, probs=GOOD["probs"].astype(np.float16))
  assert found.probs.dtype == np.float16


def test_text_file_renamed(tmp_path):
  path = epath.Path(tmp_path) / "mine.npz"
  path.write_text("epoch,accuracy\n1,0.5\n")
  with pytest.raises(ValueError, match=r"mine\.npz is damaged or not an \.npz"):
    read_foreign(path)


def test_pickles_are_refused(tmp_path):
  path = epath.Path(tmp_path) / "mine.npz"
  np.savez(path, probs=np.array([{}], object), labels=np.zeros(1, int))
  with pytest.raises(ValueError, match=r"Python objects \(a pickle\)"):
    read_foreign(path)


def test_bytes_of_another_machine(tmp_path):
  found = foreign(tmp_path, probs=GOOD["probs"].astype(">f8"))
  assert found.probs.dtype == np.float64 and found.probs.dtype.isnative
  np.testing.assert_array_equal(found.probs, GOOD["probs"])


def test_single_array(tmp_path):
  path = epath.Path(tmp_path) / "mine.npz"
  path.write_bytes(b"")
  with (tmp_path / "mine.npz").open("wb") as f:
    np.save(f, GOOD["probs"])
  with pytest.raises(files.RefusedError, match=r"single array \(\.npy\)"):
    read_foreign(path)


def header(shape, descr="<f4"):
  text = repr({"descr": descr, "fortran_order": False, "shape": shape})
  return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


def crafted(path, start, *, size=None, zeros=0, method=zipfile.ZIP_DEFLATED):
  """An archive whose `probs` begins so and whose directory lies about it."""
  with zipfile.ZipFile(path, "w", method) as archive:
    archive.writestr("probs.npy", start + bytes(zeros))
    archive.writestr("labels.npy", header((1,), "<i4") + bytes(4))
    if size is not None:
      archive.filelist[0].file_size = size
  return epath.Path(path)


HUGE = header((10**5, 10**6, 100))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"start": HUGE}, "not what the archive holds"),
    ({"start": HUGE, "size": len(HUGE) + 4 * 10**13}, "more than are there"),
    ({"start": header((-2, -3, 4)), "zeros": 96}, "not what the archive holds"),
    ({"start": header((1, 2, 3), "|O")}, "Python objects"),
    ({"start": header((1,)), "zeros": 4, "method": zipfile.ZIP_LZMA}, "packed"),
    ({"start": header((1, 10**6, 20)), "zeros": 8 * 10**7}, "sum to 1"),
    ({"start": b"\x93NUMPY\2\0" + b"\xff" * 4}, "damaged"),
    ({"start": b"\x93NUMPY\3\0" + bytes(80)}, "no plain array"),
  ],
)
def test_bombs_take_no_memory_beyond_what_they_declare(
  tmp_path, options, message
):
  path = crafted(tmp_path / "mine.npz", **options)
  declared = options.get("zeros", 0)
  del options
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=message):
      read_foreign(path)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 3 * declared + 2**22


def test_arrays_larger_than_the_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(files.os, "sysconf", lambda name: 10)
  with pytest.raises(files.RefusedError, match="more than this machine's"):
    foreign(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reading_takes_at_most_three_times_the_arrays(tmp_path, dtype, save):
  probs = np.full((1, 500_000, 4), 0.25, dtype)
  save(tmp_path / "mine.npz", probs=probs, labels=np.zeros(500_000, int))
  tracemalloc.start()
  try:
    read_foreign(epath.Path(tmp_path) / "mine.npz")
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert probs.nbytes < peak < 3 * (probs.nbytes + 8 * 500_000)


def damaged(content, generator):
  """`content` after one of the ways in which files go wrong."""
  content = bytearray(content)
  place = generator.randrange(len(content))
  kind = generator.choice(["flip", "cut", "zero", "swap", "edit", "text"])
  if kind == "flip":
    for _ in range(generator.choice([1, 1, 8])):
      content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
  elif kind == "cut":
    del content[place:]
  elif kind == "zero":
    content[place : place + 16] = bytes(len(content[place : place + 16]))
  elif kind == "swap":
    content[:] = content[place:] + content[:place]
  elif kind == "edit":
    old = generator.choice([b"(2, 4, 3)", b"'<f4'", b"False", b"(4,)", b"PK"])
    new = bytes(generator.choices(b"0123456789-,()'<>|OfiuVL{}TrueNone", k=9))
    content[:] = content.replace(old, new[: len(old)])
  else:
    content[:] = generator.randbytes(generator.randrange(200))
  return bytes(content)


def test_no_damaged_file_ends_in_a_traceback(tmp_path, capsys, monkeypatch):
  """Anything but the exit codes 0 and 2 would be an exception here."""
  monkeypatch.setattr(diagnose, "of_classes", lambda *arguments, **options: {})
  monkeypatch.setattr(diagnose, "summary", lambda *arguments, **options: "fine")
  contents = []
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "good.npz", **GOOD, epochs=np.array([1, 2]))
    contents.append((tmp_path / "good.npz").read_bytes())
  generator = random.Random(0)
  path, codes = tmp_path / "mine.npz", []
  for _ in range(500):
    path.write_bytes(damaged(generator.choice(contents), generator))
    codes.append(
      cli.main(
        ["diagnose", f"--predictions={path}", f"--workdir={tmp_path / 'w'}"]
      )
    )
    err = capsys.readouterr().err
    assert err.count("\n") == (codes[-1] == 2), err
    assert len(err) < 1000
  assert codes.count(2) > 400


def test_files_under_other_names_are_no_epochs(store):
  epochs = store.epochs
  for name in ("000039", "7", "²"):
    files.write_npz(store.path / f"{name}.npz", probs=np.zeros(1))
  assert PredictionStore(store.path).epochs == epochs
