"""Warm-up and cosine as the official code of other methods has them; computed here in float64."""

import jax
import numpy as np
import pytest

from mmcl_jax.optim import SCALINGS, warmup_cosine
from tests.golden.reference import load


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def evaluate(schedule, steps):
    return np.array([float(schedule(np.float64(s))) for s in steps])


def test_declip():
    g = load("schedules")
    start, peak, warmup, steps, end = g["declip_args_initial_lr_peak_lr_warmup_total_min"]
    # It counts steps from 1 and has `start` at the first and the peak at step `warmup`: ours, a step earlier.
    schedule = warmup_cosine(peak, steps - 1, warmup - 1, start=start, end=end)
    ours = evaluate(schedule, range(int(steps)))
    np.testing.assert_allclose(ours, g["declip_fdt_cosine_lr_step_1_to_total"], rtol=1e-7, atol=1e-12)


def test_moco_cosine_per_epoch():
    expected = load("schedules")["moco_cosine_lr_per_epoch"]
    ours = evaluate(warmup_cosine(expected[0], len(expected), 0), range(len(expected)))
    np.testing.assert_allclose(ours, expected, rtol=1e-7)


def test_moco_holds_the_rate_for_an_epoch():
    expected, epoch = load("schedules")["moco_cosine_lr_per_epoch"], 7
    schedule = warmup_cosine(expected[0], epoch * len(expected), 0, hold=epoch)
    ours = evaluate(schedule, range(epoch * len(expected)))
    np.testing.assert_allclose(ours, np.repeat(expected, epoch), rtol=1e-7)


def test_slip():
    g = load("schedules")
    peak, end, epochs, epoch, warmup, start = g["slip_args_base_end_epochs_itersperepoch_warmupepochs_start"]
    schedule = warmup_cosine(peak, epochs * epoch, int(warmup * epoch), start=start, end=end, inclusive=True)
    expected = g["slip_cosine_lr_per_iter"]
    np.testing.assert_allclose(evaluate(schedule, range(len(expected))), expected, rtol=1e-7)


@pytest.mark.parametrize("scaling", ["linear", "sqrt"])
def test_simclr(scaling):
    g = load("schedules")
    base, batch, examples, warmup_epochs, epochs = g["simclr_args_base_batch_examples_warmupepochs_epochs"]
    expected = g[f"simclr_{scaling}_lr_per_step"]
    base *= SCALINGS[scaling](batch)
    # The official code rounds the number of steps up by one, so that the last one is not quite zero.
    warmup, steps = round(warmup_epochs * examples / batch), int(epochs * examples / batch) + 1
    ours = evaluate(warmup_cosine(base, steps, warmup), range(len(expected)))
    np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-12)
