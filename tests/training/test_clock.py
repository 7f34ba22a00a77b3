"""Ticks of a run: exact, in order, the last always kept and saved."""

import numpy as np
import pytest

from kfkd_jax.training import clock as clock_lib


def test_epochs_are_ticks():
  clock = clock_lib.make_clock(5, 7, every=2, resume_every=3)
  assert clock.ends == (7, 14, 21, 28, 35)
  assert clock.kept == {2, 4, 5}
  assert clock.saved == {3, 5}
  assert [clock.epochs(t) for t in range(1, 6)] == [1, 2, 3, 4, 5]
  assert isinstance(clock.epochs(1), int)
  assert [clock.start(t) for t in (1, 2, 6)] == [0, 7, 35]


def test_parts_of_an_epoch_meet_its_end():
  clock = clock_lib.make_clock(2, 7, every=0.25, resume_every=1)
  assert clock.ends == (2, 4, 6, 7, 9, 11, 13, 14)
  assert clock.kept == set(range(1, 9))
  assert clock.saved == {4, 8}
  assert clock.epochs(4) == 1
  assert clock.epochs(1) == pytest.approx(2 / 7, abs=1e-4)


def test_more_parts_than_steps_keeps_every_step_once():
  clock = clock_lib.make_clock(2, 3, every=0.1)
  assert clock.ends == (1, 2, 3, 4, 5, 6)


def test_steps_run_across_epochs():
  clock = clock_lib.make_clock(3, 4, every=5, unit="step", resume_every=1)
  assert clock.ends == (5, 10, 12)
  assert clock.kept == {1, 2, 3}
  assert clock.saved == {1, 2, 3}  # at each, an epoch ended since the last


@pytest.mark.parametrize("unit", clock_lib.UNITS)
@pytest.mark.parametrize("every", [1, 2, 3, 50])
@pytest.mark.parametrize("resume_every", [1, 4])
def test_the_last_tick_ends_the_run(unit, every, resume_every):
  clock = clock_lib.make_clock(
    6, 5, every=every, unit=unit, resume_every=resume_every
  )
  last = len(clock.ends)
  assert clock.ends[-1] == 30
  assert last in clock.kept and last in clock.saved
  assert (np.diff((0, *clock.ends)) > 0).all()


def test_unknown_unit_is_refused():
  with pytest.raises(ValueError, match="unit 'minute' is unknown"):
    clock_lib.make_clock(1, 1, unit="minute")
