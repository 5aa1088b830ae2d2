"""Device ops: what streams are made of behind `||`, batched and inside jit, with a key per example."""

from mmcl_jax.augment.device import DeviceStreams

__all__ = ["DeviceStreams"]
