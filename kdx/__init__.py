"""kdx: compress image classifiers by knowledge distillation and variational sparsification."""

__version__ = "0.1.0"
