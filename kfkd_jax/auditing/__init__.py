"""Which labels are wrong, by what a network said of them while it learned.

Networks learn right labels before wrong ones, so the history of what was said
of a point tells whether its label belongs there. All scores here read
predictions of the training points with their given labels: no clean label, no
noise rate. A higher score is a more suspect label.

`audit` reads a whole history `[C, N, K]`, a checkpoint at a time. In a loop of
your own, `audit_init`, `audit_update` and `audit_finish` do the same with no
more than two arrays `[N, K]`. Letters: C epochs in time order, N examples, K
classes.
"""

from kfkd_jax.auditing.judged import Judged, judge
from kfkd_jax.auditing.noise import estimated_noise, noise_of
from kfkd_jax.auditing.others import NEED_MORE_EPOCHS, Scores
from kfkd_jax.auditing.sums import (
  AuditSums,
  audit_init,
  audit_update,
)
from kfkd_jax.auditing.verdict import (
  KINDS,
  Audit,
  audit,
  audit_finish,
  trust,
)

__all__ = [
  "KINDS",
  "NEED_MORE_EPOCHS",
  "Audit",
  "AuditSums",
  "Judged",
  "Scores",
  "audit",
  "audit_finish",
  "audit_init",
  "audit_update",
  "estimated_noise",
  "judge",
  "noise_of",
  "trust",
]
