import errno
import os
import pathlib
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from kfkd_jax import checkpoints, files, parallel
from kfkd_jax.checkpoints import numbered

# A failed read leaves Orbax's own coroutines unfinished.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def make_tree(value):
  tree = {
    "w": np.full((4, 3), value, np.float32),
    "n": {"step": np.int32(value)},
  }
  return parallel.replicate(tree, parallel.data_mesh(jax.devices()[:1]))


@pytest.fixture
def saved(tmp_path):
  with checkpoints.Checkpoints(epath.Path(tmp_path) / "history") as kept:
    for step in (1, 2, 5):
      kept.save(step, make_tree(step))
    kept.wait()
    yield kept


def data_file(folder):
  """The file whose loss loses values (others hold shapes and sharding)."""
  return max(pathlib.Path(folder).glob("d/*"), key=lambda p: p.stat().st_size)


def largest_file(folder):
  files = (p for p in pathlib.Path(folder).rglob("*") if p.is_file())
  return max(files, key=lambda p: p.stat().st_size)


def test_restores_what_was_saved(saved):
  assert saved.steps() == [1, 2, 5]
  restored = saved.restore(2, make_tree(0))
  assert isinstance(restored["w"], np.ndarray)
  jax.tree.map(np.testing.assert_array_equal, restored, make_tree(2))


def test_folder_may_be_relative(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with checkpoints.Checkpoints(epath.Path("run") / "history") as kept:
    kept.save(1, make_tree(1))
  assert (tmp_path / "run" / "history" / "1").exists()


def test_stacked_has_a_leading_axis_in_order(saved):
  stacked = saved.restore_stacked([1, 5], make_tree(0))
  assert stacked["w"].shape == (2, 4, 3)
  np.testing.assert_array_equal(stacked["w"][:, 0, 0], [1, 5])
  np.testing.assert_array_equal(stacked["n"]["step"], [1, 5])


def test_keep_keeps_the_newest(tmp_path):
  with checkpoints.Checkpoints(epath.Path(tmp_path) / "r", keep=2) as kept:
    for step in range(1, 6):
      kept.save(step, make_tree(step))
    kept.wait()
    assert kept.steps() == [4, 5]


def test_delete_after_then_save_again(saved):
  saved.delete_after(1)
  assert saved.steps() == [1]
  saved.save(2, make_tree(7))
  saved.wait()
  assert saved.restore(2, make_tree(0))["w"][0, 0] == 7


@pytest.mark.parametrize("change", ["flip", "truncate", "remove"])
def test_damage_is_an_error_that_names_the_folder(saved, change):
  victim = data_file(saved.path / "2" / "tree")
  content = bytearray(victim.read_bytes())
  if change == "flip":
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
  elif change == "truncate":
    victim.write_bytes(bytes(content[: len(content) // 2]))
  else:
    victim.unlink()
  with pytest.raises(checkpoints.DamagedCheckpointError, match="history/2"):
    saved.restore(2, make_tree(0))
  saved.restore(5, make_tree(0))


def test_every_flipped_data_byte_is_noticed(tmp_path):
  """Orbax alone would return wrong values; the checksums must not."""
  rng = np.random.default_rng(0)
  tree = {"w": rng.normal(size=(64, 64)).astype(np.float32)}
  mesh = parallel.data_mesh(jax.devices()[:1])
  noticed = 0
  with checkpoints.Checkpoints(epath.Path(tmp_path) / "history") as kept:
    kept.save(1, parallel.replicate(tree, mesh))
    kept.wait()
    victim = largest_file(kept.path / "1" / "tree")
    content = victim.read_bytes()
    for place in rng.integers(len(content) // 4, len(content), 8):
      damaged = bytearray(content)
      damaged[place] ^= 1
      victim.write_bytes(bytes(damaged))
      try:
        restored = kept.restore(1, tree)
      except checkpoints.DamagedCheckpointError:
        noticed += 1
        continue
      np.testing.assert_array_equal(restored["w"], tree["w"])
  assert noticed >= 4


def test_other_structure_is_refused(saved):
  with pytest.raises(checkpoints.DamagedCheckpointError):
    saved.restore(1, {"w": np.zeros((2, 2), np.float32)})


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path):
  tree = {"w": np.zeros(1 << 18, np.float32)}
  with checkpoints.Checkpoints(epath.Path(tmp_path)) as store:
    store.save(1, tree)
    tree["w"] += 1  # while it is being written
    store.wait()
    assert not store.restore(1, tree)["w"].any()


def test_a_save_is_of_its_moment_also_where_it_is_donated(tmp_path):
  mesh = parallel.data_mesh(jax.devices()[:1])
  step = jax.jit(lambda w: w + 1, donate_argnums=0)
  w = step(parallel.replicate(np.full(1 << 20, -1, np.float32), mesh))
  begin = threading.Event()
  with checkpoints.Checkpoints(epath.Path(tmp_path)) as store:
    store.save(1, {"w": w}, after=begin.wait)
    memory = w.unsafe_buffer_pointer()
    for _ in range(3):
      w = step(w)
    begin.set()
    assert w.unsafe_buffer_pointer() == memory  # in place, not beside it
    store.wait()
    assert not store.restore(1, {"w": w})["w"].any()


def test_nothing_is_written_where_what_comes_before_fails(tmp_path):
  def fail():
    raise OSError(28, "a checkpoint cannot be written", "before")

  with pytest.raises(OSError, match="written: 'before'"):
    with checkpoints.Checkpoints(epath.Path(tmp_path)) as store:
      store.save(1, make_tree(1), after=fail)
  assert not (tmp_path / "1").exists()


def test_thread_that_died_is_not_waited_for(tmp_path, monkeypatch, capsys):
  hook = threading.excepthook
  monkeypatch.setattr(numbered, "_GRACE_SECONDS", 0.1)
  failing = threading.Thread(
    target=ocp.PyTreeCheckpointer().restore, args=(tmp_path / "nowhere",)
  )
  kept = checkpoints.Checkpoints(epath.Path(tmp_path) / "h")
  kept.__enter__()
  kept.save(1, {"w": np.ones(3)}, after=threading.Event().wait)  # for ever
  # Whose thread it was is not known.
  with checkpoints.Checkpoints(epath.Path(tmp_path) / "r"):
    failing.start()
    failing.join()
  with pytest.raises(OSError, match=r"written \(.*nowhere"):
    kept.__exit__(None, None, None)
  assert threading.excepthook is hook
  assert not capsys.readouterr().err


def test_too_little_memory_is_no_full_disk(tmp_path, monkeypatch):
  def refuse():
    raise MemoryError

  kept = checkpoints.Checkpoints(epath.Path(tmp_path) / "h")
  monkeypatch.setattr(kept._manager, "wait_until_finished", refuse)
  kept.save(1, {"w": np.ones(3)})
  with pytest.raises(OSError, match="MemoryError") as raised:
    kept.wait()
  assert raised.value.errno == errno.ENOMEM


def test_pipe_inside_a_checkpoint_is_damage(tmp_path):
  tree = parallel.replicate({"w": np.ones(3)}, parallel.data_mesh())
  with checkpoints.Checkpoints(epath.Path(tmp_path) / "h") as kept:
    kept.save(1, tree)
    kept.wait()
    note = tmp_path / "h" / "1" / "digests" / "metadata"
    note.unlink()
    os.mkfifo(note)
    with pytest.raises(checkpoints.DamagedCheckpointError, match="named pipe"):
      kept.restore(1, tree)


def test_a_checkpoint_under_another_number_or_of_another_run(tmp_path):
  folder = pathlib.Path(tmp_path) / "history"
  with checkpoints.Checkpoints(epath.Path(folder), owner={"run": "a"}) as kept:
    for step in (1, 3):
      kept.save(step, make_tree(step))
  (folder / "1").rename(tmp_path / "aside")
  (folder / "3").rename(folder / "1")
  (tmp_path / "aside").rename(folder / "3")
  with checkpoints.Checkpoints(epath.Path(folder)) as kept:
    for step, label in ((1, "checkpoint 3, not 1"), (3, "checkpoint 1, not 3")):
      with pytest.raises(checkpoints.DamagedCheckpointError, match=label):
        kept.restore(step, make_tree(0))
  (folder / "1").rename(tmp_path / "aside")
  (folder / "3").rename(folder / "1")
  with checkpoints.Checkpoints(epath.Path(folder), owner={"run": "b"}) as kept:
    with pytest.raises(checkpoints.DamagedCheckpointError, match="run a, not"):
      kept.restore(1, make_tree(0))


def test_checkpoints_of_versions_without_labels_are_read(saved):
  note = saved.path / "2" / "digests" / "metadata"
  content = files.read_json(note)
  del content["label"]
  files.write_json(note, content)
  assert saved.restore(2, make_tree(0))["w"][0, 0] == 2
