"""mmcl_jax: multimodal contrastive learning in JAX.

`mmcl_jax.load("runs/x")` opens a finished or running run for embedding, scoring and zero-shot classification.
"""

__version__ = "0.1.0"

__all__ = ["load"]


def load(run, **kwargs):
    """Opens a run; see `mmcl_jax.predict.load`."""
    from mmcl_jax.predict import load  # jax is only imported when it is needed: `mmcl --help` stays quick

    return load(run, **kwargs)
