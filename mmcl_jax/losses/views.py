"""Contrastive losses of two views of the same examples, in which a view is a negative of others of its kind, too."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses import plan
from mmcl_jax.losses.softmax import NEVER, product, rows_of, wide
from mmcl_jax.types import Array


def nt_xent(
    x: Array,
    y: Array,
    present: Array | None = None,
    *,
    scale: Array | float,
    axis: parallel.Axis = None,
    impl: str = "auto",
    budget_mib: float = plan.BUDGET_MIB,
    chunk: int = plan.CHUNK,
) -> Array:
    """NT-Xent: each view of an example should find the other one among all other views of the batch.

    With z the 2N views x_1, ..., x_N, y_1, ..., y_N of the N present rows of the *global* batch, and p(k) the other
    view of the example of which k is one,

        L = 1 / (2 N) * sum_k [ logsumexp_{m != k} (scale z_k . z_m) - scale z_k . z_p(k) ].

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, arXiv 2002.05709, equation 1.
    Google's code returns the sum of the two views' means, which is twice as much.

    Args:
        x: [b, D] unit vectors, this device's rows.
        y: [b, D] unit vectors.
        present: [b] bool; rows that are False count neither as queries nor as negatives. None = all count.
        scale: [] multiplier of the cosine, 1 / temperature.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.
        impl: "auto", or a form of `losses.plan`; value and gradients are the same up to rounding. The ring keeps the
            columns that pass by for its gradient, and so saves tiles of logits only.
        budget_mib: of temporary memory a device, for "auto".
        chunk: columns of a tile at most, for "chunked" and "ring".

    Returns:
        [] float32, the same on all devices; 0 if nothing is present.

    Raises:
        ValueError: for an unknown impl.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(nt_xent(jnp.eye(2), jnp.eye(2), scale=1.0)), 4)
        0.5514
    """
    x, y, present = rows_of(x, y, present, axis)
    views = jnp.concatenate([x, y])  # [2b, D]
    form = plan.choose("nt_xent", views, axis, impl, budget_mib, chunk)
    own, batch = parallel.rows(len(x), axis), len(x) * parallel.size(axis)
    scale = parallel.varying(jnp.asarray(scale), axis)

    query = jnp.concatenate([own, own + batch])[:, None]  # numbers of the views

    def visit(found, part):
        lse, positive = found
        x, y, there, number = part
        logits = scale * product(views, jnp.concatenate([x, y]).T)  # [2b, 2c]
        there, first, second = jnp.tile(there, 2)[None], number, number + batch
        itself = jnp.concatenate([first, second])[None] == query
        other = jnp.concatenate([second, first])[None] == query
        # From the same product as the rest: where there is nothing else, the loss is exactly 0.
        positive = positive + jnp.where(other & there, logits, 0).sum(1)
        logits = jnp.where(there & ~itself, logits, NEVER)
        return (jnp.logaddexp(lse, jax.nn.logsumexp(logits, axis=1)), positive), ()

    columns = (x, y, present, own)
    start = jnp.full(len(views), NEVER, wide(x)), jnp.zeros(len(views), wide(x))
    if form.impl == "shared_tile":
        found, _ = visit(start, jax.tree.map(lambda c: parallel.gather(c, axis), columns))
    else:
        # The gradient computes each chunk's logits anew instead of keeping them.
        visit, ring, examples = jax.checkpoint(visit, prevent_cse=False), form.impl == "ring", max(1, chunk // 2)
        found, _ = parallel.over_columns(visit, start, columns, parallel.SUM, axis=axis, ring=ring, chunk=examples)
    loss = found[0] - found[1]  # [2b]
    return 0.5 * parallel.mean(loss[: len(x)] + loss[len(x) :], present, axis)


def joint_negatives(
    x: Array, y: Array, present: Array | None = None, *, scale: Array | float, axis: parallel.Axis = None
) -> Array:
    """Each x should be nearer to its own y than to all other x: y are positives only. GMC's ablation.

        L = 1 / N * sum_i [ logsumexp_{j != i} (scale x_i . x_j) - scale x_i . y_i ]

    over the N present rows of the *global* batch. The positive is not in the sum, so that L can be negative.

    Vasco et al., Geometric Multimodal Contrastive Representation Learning, arXiv 2202.03390.

    Args:
        x: [b, D] unit vectors, this device's rows: the joint representation.
        y: [b, D] unit vectors: a modality's.
        present: [b] bool or None.
        scale: [] multiplier of the cosine, 1 / temperature.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        [] float32, the same on all devices; 0 if there are not two present rows.
    """
    x, y, present = rows_of(x, y, present, axis)
    scale, own = parallel.varying(jnp.asarray(scale), axis), parallel.rows(len(x), axis)
    there = parallel.gather(present, axis)[None] & (own[:, None] != parallel.gather(own, axis)[None])  # [b, B]
    logits = jnp.where(there, scale * product(x, parallel.gather(x, axis).T), NEVER)
    positive = scale * jnp.einsum("bd,bd->b", x, y, precision="highest", preferred_element_type=wide(x))
    loss = jax.nn.logsumexp(logits, axis=1) - positive
    return parallel.mean(loss, present & there.any(1), axis)
