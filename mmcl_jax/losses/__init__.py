"""Losses: pure functions of the global batch. See `info_nce` for the signature that they share."""

from mmcl_jax.losses.gap import easy_nce, uniformity
from mmcl_jax.losses.predictive import masked_tokens, simsiam
from mmcl_jax.losses.queues import queue_accuracy, queue_margin, queue_nce, queue_tag_nce
from mmcl_jax.losses.sigmoid import sigmoid
from mmcl_jax.losses.softmax import in_batch_accuracy, info_nce
from mmcl_jax.losses.spread import spread
from mmcl_jax.losses.tokenwise import similarities, tokenwise_accuracy, tokenwise_nce
from mmcl_jax.losses.unit import unit
from mmcl_jax.losses.views import joint_negatives, nt_xent

__all__ = [
    "easy_nce",
    "in_batch_accuracy",
    "info_nce",
    "joint_negatives",
    "masked_tokens",
    "nt_xent",
    "queue_accuracy",
    "queue_margin",
    "queue_nce",
    "queue_tag_nce",
    "sigmoid",
    "similarities",
    "simsiam",
    "spread",
    "tokenwise_accuracy",
    "tokenwise_nce",
    "uniformity",
    "unit",
]
