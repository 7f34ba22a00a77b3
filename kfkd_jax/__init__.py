"""Knowledge fusion and distillation over the history of one training run.

The functions of a short script, on NumPy or JAX arrays. Letters: C checkpoints
in time order, N examples, B batch, K classes, M members.

What was forgotten, from predictions `probs[C, N, K]` and `labels[N]`:
`correctness`, `forget_fractions`, `learn_fractions`, `forgetting_curves`,
`last_right`.

Noted in a training loop of your own, of any framework: `Recorder`.

Weights over the checkpoints, `weights[C]`:
`knowledge_fusion`, `mixture_fusion`, `final_only`, `best_checkpoint`,
`horizontal`, `fixed_jumps`, `random_checkpoints`; `fuse` applies them.

Networks of any kind, an `nnx.Module` as it is, others as a function
`apply_fn(variables, inputs) -> logits`:
`stack_checkpoints`, `predict_checkpoints`, `fused_predict`.

A network that `kfkd export` wrote or `kfkd push` sent to the Hugging Face Hub:
`from_pretrained`.

Losses per example, to distil with: `cross_entropy`, `distillation`.

Wrong labels on purpose: `symmetric`, `pair`, `asymmetric` make a transition
matrix, `corrupt_labels` draws from it.

Wrong labels found, from predictions `probs[C, N, K]` of the training points:
`audit`; in a loop of your own `audit_init`, `audit_update`, `audit_finish`.

Scores: `accuracy`, `negative_log_likelihood`, `brier_score`,
`calibration_error`.

Sets of classes that hold the label at a promised rate, from any probabilities:
`set_scores`, `set_threshold`; answering only where one is sure:
`risk_coverage`.

The modules they come from hold more, and `theory` the closed forms. Importing
this package touches no device. Checkpoints and predictions on disk are in
`kfkd_jax.checkpoints` and `kfkd_jax.predictions`; `kfkd_jax.merging` makes one
network of anybody's checkpoints.
"""

__version__ = "0.1.0"

from etils import epy as _epy

# Loaded when first asked for: the command listens to Ctrl-C before JAX loads.
with _epy.lazy_api_imports(globals()):
  from kfkd_jax import (
    auditing,
    averaging,
    forgetting,
    fusion,
    history,
    label_noise,
    losses,
    metrics,
    sets,
    statistics,
  )
  from kfkd_jax.auditing import (
    audit,
    audit_finish,
    audit_init,
    audit_update,
  )
  from kfkd_jax.export.remote import from_pretrained
  from kfkd_jax.forgetting import (
    correctness,
    forget_fractions,
    forgetting_curves,
    last_right,
    learn_fractions,
  )
  from kfkd_jax.fusion import (
    best_checkpoint,
    final_only,
    fixed_jumps,
    fuse,
    horizontal,
    knowledge_fusion,
    mixture_fusion,
    random_checkpoints,
  )
  from kfkd_jax.history import (
    fused_predict,
    predict_checkpoints,
    stack_checkpoints,
  )
  from kfkd_jax.label_noise import asymmetric, corrupt_labels, pair, symmetric
  from kfkd_jax.losses import cross_entropy, distillation
  from kfkd_jax.metrics import (
    accuracy,
    brier_score,
    calibration_error,
    negative_log_likelihood,
  )
  from kfkd_jax.recording import Recorder
  from kfkd_jax.sets import risk_coverage, set_scores, set_threshold

__all__ = [
  "Recorder",
  "accuracy",
  "asymmetric",
  "audit",
  "audit_finish",
  "audit_init",
  "audit_update",
  "auditing",
  "averaging",
  "best_checkpoint",
  "brier_score",
  "calibration_error",
  "correctness",
  "corrupt_labels",
  "cross_entropy",
  "distillation",
  "final_only",
  "fixed_jumps",
  "forget_fractions",
  "forgetting",
  "forgetting_curves",
  "from_pretrained",
  "fuse",
  "fused_predict",
  "fusion",
  "history",
  "horizontal",
  "knowledge_fusion",
  "label_noise",
  "last_right",
  "learn_fractions",
  "losses",
  "metrics",
  "mixture_fusion",
  "negative_log_likelihood",
  "pair",
  "predict_checkpoints",
  "random_checkpoints",
  "risk_coverage",
  "set_scores",
  "set_threshold",
  "sets",
  "stack_checkpoints",
  "statistics",
  "symmetric",
]
