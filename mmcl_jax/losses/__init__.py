"""Losses: pure functions of the global batch. See `info_nce` for the signature that they share."""

from mmcl_jax.losses.sigmoid import sigmoid
from mmcl_jax.losses.softmax import in_batch_accuracy, info_nce
from mmcl_jax.losses.unit import unit

__all__ = ["in_batch_accuracy", "info_nce", "sigmoid", "unit"]
