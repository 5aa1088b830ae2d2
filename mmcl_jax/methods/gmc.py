"""GMC: Geometric Multimodal Contrastive Representation Learning (Vasco et al. 2022, arXiv 2202.03390).

    z_m = unit(g(f_m(x_m))) of each modality m,  z_J = unit(g(f_J(x_1, ..., x_M))) of all of them together
    L = sum_m NT-Xent(z_J, z_m)

f_J has trunks of its own, g is one head that all share. NT-Xent (see `losses.nt_xent`) takes the 2N vectors z_J, z_m of
the global batch, so that z_m is compared with joint vectors and with others of its modality, never with another
modality's. Its mean over rows is summed over modalities.

Without all modalities an example is represented by the mean of the z_m that there are, which is not normalised
(`fuse`). Checked against the official code (bc4eada): losses, gradients, this mean.

Not in the paper, whose training data is complete: an example that lacks m is left out of m's term, and with
joint="all" out of all terms, as it has no z_J. With joint="present" its z_J is made from what it has, if that is two
modalities or more; absent ones add nothing to f_J's projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.encoders.joint import Joint
from mmcl_jax.encoders.readouts import SharedMlp
from mmcl_jax.losses import in_batch_accuracy, joint_negatives, nt_xent
from mmcl_jax.method import Method, check_single, mean_of_present, weights_of_terms
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Array, Batch, Stream, first_clips

NEGATIVES = ("all", "joint")
JOINTS = ("all", "present")


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 64,
    latent: int = 64,
    hidden: Sequence[int] = (512, 512),
    temperature: float = 0.1,
    negatives: str = "all",
    joint: str = "all",
    weights: Mapping[str, float] | None = None,
    target: str = "",
) -> Gmc:
    """Builds GMC; the keyword arguments are `config.method`.

    Args:
        encoders: two or more, of any names; the joint encoder has a copy of each.
        embed_dim: size of the shared space.
        latent: size of what goes into the shared head.
        hidden: of the head's inner layers; () for one dense layer.
        temperature: tau; the paper has .1, and .3 for MOSEI, MOSI and Pendulum.
        negatives: "all", or "joint" for the paper's ablation, in which only joint vectors are negatives.
        joint: whether z_J needs "all" modalities, or at least two, "present".
        weights: of modalities' terms, where they are not 1; see `weights_of_terms`.
        target: stream of numbers [B, n] to be predicted from z_J, whose mean absolute error is added to the loss
            (the supervised variant, for MOSEI and MOSI); "" = none.

    Raises:
        ValueError: for a single modality, one named "joint", or a choice that does not exist.
    """
    if len(encoders) < 2 or "joint" in encoders:
        raise ValueError(f"GMC needs two encoders or more, none of them named 'joint'; there are {sorted(encoders)}.")
    if temperature <= 0:
        raise ValueError(f"method.temperature={temperature} must be positive.")
    for name, value, possible in (("negatives", negatives, NEGATIVES), ("joint", joint, JOINTS)):
        if value not in possible:
            raise ValueError(f"method.{name}={value!r}; possible: {', '.join(possible)}.")
    head = dict(dim=embed_dim, latent=latent, hidden=tuple(hidden))
    readouts = {name: SharedMlp(**head) for name in encoders} | {"joint": SharedMlp(**head, project=False)}
    return Gmc(
        encoders=dict(encoders) | {"joint": Joint(dict(encoders), latent)},
        readouts=readouts,
        temperature=temperature,
        negatives=negatives,
        joint=joint,
        weights=weights_of_terms(weights, encoders),
        target=target,
    )


class Regression(nn.Module):
    """The official code's head for numbers: a residual layer, then a linear one. [B, D] -> [B, n]."""

    targets: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        width = z.shape[-1]
        r = z + nn.Dense(width, name="out")(nn.relu(nn.Dense(width, name="in")(z)))
        return nn.Dense(self.targets, name="prediction")(r)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gmc(Method):
    """See the module's docstring; built by `make`."""

    temperature: float
    negatives: str
    joint: str
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    target: str

    @property
    def streams(self):
        """All modalities, and what is predicted of them."""
        return (*self.modalities, *filter(None, (self.target,)))

    @property
    def spaces(self):
        """One space for all modalities."""
        return {"all": (*self.modalities, "joint")}

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in alphabetical order."""
        return tuple(sorted(set(self.encoders) - {"joint"}))

    @property
    def enough(self) -> int:
        """How many modalities z_J is made from, at least."""
        return len(self.modalities) if self.joint == "all" else 2

    def trains_on(self, names):
        """Whether z_J can be made."""
        return len(set(self.modalities) & set(names)) >= self.enough

    def init(self, rng, batch):
        """Encoders and head, and the head for what is predicted."""
        params, extra = super().init(rng, self.with_joint(first_clips(batch)))
        if self.target:
            if self.target not in batch:
                raise ConfigError(
                    f"method.target={self.target!r} is not among the streams: add it to data.eval_streams."
                )
            width = self.readouts["joint"].dim
            head = Regression(batch[self.target].data.shape[-1])
            params["regression"] = head.init(jax.random.fold_in(rng, 1000), jnp.zeros((1, width)))["params"]
        return params, extra

    def loss(self, params, extra, batch, ctx):
        """NT-Xent of each modality with the joint vector."""
        batch = self.with_joint(batch)
        if self.joint == "all" and "joint" in batch:  # what takes part in no term is not in batch statistics, either
            complete = batch["joint"].is_present()
            batch = batch | {name: batch[name].replace(present=complete) for name in self.modalities}
        z, extra = self.project(params, extra, batch, ctx)
        loss, metrics = jnp.zeros(()), {}
        term = ctx.over_batch(nt_xent if self.negatives == "all" else joint_negatives)
        for name in self.modalities if "joint" in batch else ():
            if name in batch:
                present = batch["joint"].is_present() & batch[name].is_present()
                metrics[name] = term(z["joint"], z[name], present, scale=1 / self.temperature)
                metrics[f"{name}_acc"] = ctx.over_batch(in_batch_accuracy)(z["joint"], z[name], present)
                loss += self.weights.get(name, 1.0) * metrics[name]
        if self.target and "joint" in batch and self.target in batch:
            wanted = batch[self.target]
            said = self.predict(params, z["joint"])
            present = batch["joint"].is_present() & wanted.is_present()
            metrics["error"] = ctx.over_batch(mean_absolute_error)(said, wanted.data, present)
            loss += metrics["error"]
        return loss, (extra, metrics)

    def predict(self, params, z):
        """The numbers [B, n] that the head for `target` makes of z_J [B, D], or of what stands in for it."""
        head = params["regression"]
        return Regression(len(head["prediction"]["bias"])).apply({"params": head}, z)

    def with_joint(self, batch: Batch) -> Batch:
        """The batch with a stream "joint", whose data is those of all modalities; without it, where none can be."""
        parts = {name: batch[name] for name in self.modalities if name in batch}
        check_single(self, parts, "the joint encoder reads one of each modality", "data.eval_streams")
        if not self.trains_on(parts):
            return batch
        present = sum(s.is_present().astype(jnp.int32) for s in parts.values()) >= self.enough
        # What doesn't count for z_J must not get into batch statistics of its trunks.
        parts = {name: s.replace(present=s.is_present() & present) for name, s in parts.items()}
        return {**batch, "joint": Stream(data=parts, present=present)}

    def fuse(self, params, extra, batch, ctx):
        """z_J of examples that have all modalities, else the mean of the z_m that they have, not normalised."""
        batch = self.with_joint({name: batch[name] for name in self.modalities if name in batch})
        z = self.embed(params, extra, batch, ctx)
        names = [name for name in z if name != "joint"]
        fused, present = mean_of_present([z[n] for n in names], [batch[n].is_present() for n in names])
        if len(names) == len(self.modalities):
            complete = jnp.stack([batch[n].is_present() for n in names]).all(0)
            fused = jnp.where(complete[:, None], z["joint"], fused)
        return fused, present


def mean_absolute_error(
    said: Array, wanted: Array, present: Array | None = None, *, axis: parallel.Axis = None
) -> Array:
    """Mean of |said - wanted| over the present rows of the global batch, and over the numbers [b, n] of a row.

    Raises:
        ConfigError: if they are not of one shape; broadcasting would hide it.
    """
    if said.shape != wanted.shape:
        raise ConfigError(f"method.target: its stream must be numbers [B, n]; got {wanted.shape}.")
    present = parallel.varying(jnp.ones(len(said), bool), axis) if present is None else present
    error = jnp.abs(jnp.where(present[:, None], said - wanted, 0)).mean(1)
    return parallel.mean(error, present, axis)
