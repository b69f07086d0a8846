"""What is measured while training: hand-computed operations, a peak that no step can pass, spikes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medloupe.models.logits import summed_cross_entropy
from medloupe.train.meters.memory import peak_bytes
from medloupe.train.meters.spikes import Spikes
from medloupe.train.meters.work import StepWork, matmul_peak


def test_operations_of_a_linear_layer_forward_and_backward_by_hand() -> None:
    layer, inputs = nn.Linear(16, 8, bias=False), torch.randn(32, 16)
    work = StepWork()
    with work.counting(tokens=32):
        layer(inputs).sum().backward()
    # 2 * 16 * 8 a token forward, and as many for the weights' gradient; the inputs need none
    assert work.per_token == 2 * 2 * 16 * 8


def test_attention_counts_in_full_forward_and_backward() -> None:
    query, key, value = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    work = StepWork()
    with work.counting(tokens=1):
        F.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()
    product = 2 * 2 * 6 * 6 * 8  # two heads; a row of scores, or of what is read, a token
    assert work.per_token == 2 * product + 5 * product  # five products backward


@pytest.mark.parametrize("groups", [1, 8])
def test_convolutions_count_by_their_groups(groups: int) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
    work = StepWork()
    with work.counting(tokens=1):
        layer(torch.randn(1, 8, 5, 5, requires_grad=True)).sum().backward()
    # 25 places, 8 channels out, each from 3 x 3 x 8 / groups numbers; twice that backward
    assert work.per_token == 3 * 2 * 25 * 8 * 9 * 8 / groups


def test_a_loss_that_takes_gradients_in_its_forward_pass_is_counted() -> None:
    head, hidden = nn.Linear(8, 50, bias=False), torch.randn(6, 8, requires_grad=True)
    work = StepWork()
    with work.counting(tokens=6):
        summed_cross_entropy(hidden, torch.arange(6), head, chunk=4).backward()
    assert work.per_token == 3 * 2 * 8 * 50


def test_only_the_first_step_is_counted_and_later_ones_scale_with_their_tokens() -> None:
    work = StepWork()
    assert work.share(10, 1.0, 1e9) is None
    for rows in (4, 400):
        with work.counting(tokens=rows):
            torch.ones(rows, 10) @ torch.ones(10, 5)
    assert work.per_token == 2 * 10 * 5
    assert work.share(1_000, 0.5, 1e6) == 2 * 10 * 5 * 1_000 / 0.5 / 1e6


def test_counting_changes_no_bit_of_a_gradient() -> None:
    def gradient(counted: bool) -> torch.Tensor:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        work = StepWork()
        inputs = torch.randn(2, 9, 32)
        with work.counting(tokens=18 if counted else 0):
            block(inputs).square().sum().backward()
        assert (work.per_token is not None) == counted
        return block.linear1.weight.grad  # type: ignore[return-value]

    assert torch.equal(gradient(True), gradient(False))


def test_a_step_without_tokens_is_not_taken_for_the_measure() -> None:
    work = StepWork()
    with work.counting(tokens=0):
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert work.per_token is None


def test_the_peak_is_above_what_a_slow_product_reaches_and_is_measured_once() -> None:
    peak = matmul_peak("cpu", torch.float32)
    assert math.isfinite(peak)
    assert peak > 0
    assert matmul_peak("cpu", torch.float32) is peak


def test_memory_grows_by_what_is_held() -> None:
    before = peak_bytes(torch.device("cpu"))
    held = torch.ones(before // 4 + 2**26)  # float32: more than was ever held, and 256 MiB
    after = peak_bytes(torch.device("cpu"))
    assert after - before >= 2**27
    assert after < 4 * (before + held.nbytes)  # bytes, and neither KiB nor pages


def test_one_step_that_stands_out_is_a_spike_and_a_slope_or_noise_is_none() -> None:
    torch.manual_seed(0)
    losses = [4.0 - 0.05 * step + 0.1 * float(torch.randn(())) for step in range(60)]
    spikes = Spikes()
    assert not any(spikes.is_spike(loss) for loss in losses)
    assert spikes.is_spike(6.0)
    assert not spikes.is_spike(losses[-1])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_the_loops_business(loss: float) -> None:
    spikes = Spikes(least=3)
    for _ in range(5):
        assert not spikes.is_spike(1.0)
    assert not spikes.is_spike(loss)
    assert spikes.is_spike(2.0)  # the window still stands


def test_equal_losses_have_no_deviation_and_noise_below_a_tenth_is_no_spike() -> None:
    spikes = Spikes(least=5)
    for _ in range(10):
        spikes.is_spike(1.0)
    assert not spikes.is_spike(1.09)
    assert spikes.is_spike(1.2)


def test_a_new_level_is_taken_for_normal_after_a_window() -> None:
    spikes = Spikes(window=10, least=5)
    for _ in range(10):
        spikes.is_spike(1.0)
    found = [spikes.is_spike(5.0) for _ in range(30)]
    assert found[:9] == [True] * 9
    assert not any(found[-10:])
