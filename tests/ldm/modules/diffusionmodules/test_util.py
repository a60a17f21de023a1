"""Sums of a residual network: in place where that changes nothing."""

from __future__ import annotations

import torch

from ldm.modules.diffusionmodules.util import add_into


def test_a_sum_is_written_over_its_result_where_nothing_is_trained():
    result, x = torch.randn(2, 3), torch.randn(2, 3)
    expected = result + x
    assert add_into(result, x) is result
    assert torch.equal(result, expected)


def test_gradients_are_those_of_a_sum():
    weight, x = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    add_into(weight.sigmoid(), x).square().sum().backward()
    copies = [each.detach().clone().requires_grad_() for each in (weight, x)]
    (copies[0].sigmoid() + copies[1]).square().sum().backward()
    assert torch.equal(weight.grad, copies[0].grad)
    assert torch.equal(x.grad, copies[1].grad)


def test_two_dtypes_are_summed_in_the_wider_one():
    result, x = torch.randn(4).bfloat16(), torch.randn(4)
    for one, other in ((result, x), (x, result)):
        assert add_into(one, other).dtype is torch.float32
        assert torch.equal(add_into(one, other), one + other)
