"""Knowledge fusion and distillation over the history of one training run."""

__version__ = "0.1.0"
