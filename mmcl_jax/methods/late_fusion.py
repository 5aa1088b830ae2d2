"""Late fusion, the usual baseline where modalities may be missing: each votes for a class, the votes are averaged.

    r = 1/M sum_m h_m,   L = CE(W r + b, y)

h_m is what a linear readout makes of modality m, not normalised; y is the example's class. See Baltrusaitis et al.
2017, Multimodal Machine Learning, arXiv 1705.09406, section 6.1; it is no particular paper's model, but what GMC and
the like are compared with. It is trained on complete examples alone: those that lack a modality or the class are left
out. At work, the mean is over the modalities that there are (`fuse`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mmcl_jax import parallel
from mmcl_jax.encoders.readouts import Linear
from mmcl_jax.method import Method, mean_of_clips, mean_of_present
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Array


def make(encoders: Mapping[str, nn.Module], *, classes: int, embed_dim: int = 128, target: str = "label") -> LateFusion:
    """Builds it; the keyword arguments are `config.method`.

    Args:
        encoders: two or more, of any names.
        classes: how many there are; the log's `beyond_classes` is the share of numbers that are too large for it.
        embed_dim: size of r.
        target: stream of the class's number, [B] int; a negative one means that it isn't known.

    Raises:
        ValueError: for a single modality or class, or if the target has an encoder.
    """
    if classes < 2:
        raise ValueError(f"method.classes={classes}: there must be two or more.")
    if len(encoders) < 2 or target in encoders:
        raise ValueError(f"late_fusion needs two encoders or more, none for {target!r}; there are {sorted(encoders)}.")
    return LateFusion(
        encoders=encoders, readouts={name: Linear(embed_dim) for name in encoders}, classes=classes, target=target
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LateFusion(Method):
    """See the module's docstring; built by `make`."""

    classes: int
    target: str

    @property
    def streams(self):
        """All modalities, and the class."""
        return (*sorted(self.encoders), self.target)

    @property
    def spaces(self):
        """One space for all modalities."""
        return {"all": tuple(sorted(self.encoders))}

    def init(self, rng, batch):
        """Encoders, readouts and the classifier."""
        params, extra = super().init(rng, batch)
        width = self.readouts[min(self.readouts)].dim
        head = nn.Dense(self.classes).init(jax.random.fold_in(rng, 1000), jnp.zeros((1, width)))
        params["classifier"] = head["params"]
        return params, extra

    def loss(self, params, extra, batch, ctx):
        """Cross entropy of the class, over the examples that have all modalities."""
        if not set(self.streams) <= set(batch):
            return jnp.zeros(()), (extra, {})
        label = batch[self.target].data
        if label.ndim != 1 or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ConfigError(
                f"method.target: stream {self.target!r} must be a class's number, [B] int, an integer field without "
                f"ops; it is {label.dtype}{label.shape}."
            )
        complete = jnp.stack([batch[name].is_present() for name in self.streams]).all(0)
        # What doesn't count must not get into batch statistics, either.
        counts = complete & (label >= 0) & (label < self.classes)
        parts = {name: batch[name].replace(present=counts) for name in self.encoders}
        r, extra = self._mean(params, extra, parts, ctx)
        logits = nn.Dense(self.classes).apply({"params": params["classifier"]}, r)
        found = ctx.over_batch(cross_entropy)(logits, label, complete)
        return found["loss"], (extra, {k: v for k, v in found.items() if k != "loss"})

    def fuse(self, params, extra, batch, ctx):
        """The mean of the h_m that an example has."""
        streams = {name: batch[name] for name in self.encoders if name in batch}
        return self._mean(params, extra, streams, ctx)[0], jnp.stack([s.is_present() for s in streams.values()]).any(0)

    def _mean(self, params, extra, streams, ctx):
        """Vectors r [B, D] of what examples have of the streams, and `extra` with its batch statistics moved on."""
        encoded, extra = self.encode(params, extra, streams, ctx)
        h = {}
        for name, e in encoded.items():
            out, extra = self.apply(f"{name}_readout", params, extra, e, ctx, streams[name].present)
            h[name] = mean_of_clips(out, streams[name])
        return mean_of_present([*h.values()], [streams[name].is_present() for name in h])[0], extra


def cross_entropy(
    logits: Array, labels: Array, present: Array | None = None, *, axis: parallel.Axis = None
) -> dict[str, Array]:
    """Mean cross entropy and accuracy over the present rows of the global batch whose class is known.

    Args:
        logits: [b, C].
        labels: [b] int, the class's number; rows where it is none of 0 .. C - 1 don't count.
        present: [b] bool; None = all.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        "loss" and "acc", and "beyond_classes", the share of present rows whose label is C or more; [] float32 each,
        the same on all devices; 0 if nothing is present.
    """
    beyond = parallel.mean((labels >= logits.shape[-1]).astype(jnp.float32), present, axis)
    known = (labels >= 0) & (labels < logits.shape[-1])
    present = known if present is None else known & present
    logits = jnp.where(present[:, None], logits.astype(jnp.float32), 0)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(present, labels, 0))
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    means = {"loss": parallel.mean(loss, present, axis), "acc": parallel.mean(right, present, axis)}
    return means | {"beyond_classes": beyond}
