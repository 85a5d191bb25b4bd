from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ciper.model import fourier
from ciper.model.fourier import correlate


@pytest.mark.parametrize(
    ("maps", "templates"),
    [
        ((5, 16, 32, 32), (7, 16, 17, 17)),
        ((3, 2, 9, 14), (4, 2, 4, 5)),  # odd and even sides
        ((2, 1, 6, 7), (1, 1, 6, 7)),  # as large as the map
        ((2, 3, 5, 8), (2, 3, 1, 1)),
    ],
)
def test_it_is_the_plain_correlation(
    maps: tuple[int, ...], templates: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fourier, "MAPS_AT_ONCE", 2)
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(maps, generator=generator)
    kernel = torch.randn(templates, generator=generator)
    found, expected = correlate(some, kernel), F.conv2d(some, kernel)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_template_is_found_where_it_lies() -> None:
    """By hand: row 2, column 1 of a map of zeros."""
    template = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    maps = torch.zeros(1, 1, 6, 5)
    maps[0, 0, 2:4, 1:3] = template
    found = correlate(maps, template[None, None])
    assert found.shape == (1, 1, 5, 4)
    assert found.flatten().argmax() == 2 * 4 + 1
    assert found[0, 0, 2, 1] == pytest.approx(15.0)
    # One column to the right 1 meets 2 and 3 meets -1; two columns to the right nothing meets.
    assert found[0, 0, 2, 2] == pytest.approx(2.0 - 3.0, abs=1e-5)
    assert found[0, 0, 2, 3] == pytest.approx(0.0, abs=1e-5)


def test_gradients_after_use_without_them() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 3, 10, 10, generator=generator)
    kernel = torch.randn(2, 3, 4, 4, generator=generator)
    with torch.inference_mode():
        correlate(maps, kernel)
    wanted = kernel.clone().requires_grad_()
    (quick,) = torch.autograd.grad(correlate(maps, wanted).square().sum(), wanted)
    (slow,) = torch.autograd.grad(F.conv2d(maps, wanted).square().sum(), wanted)
    torch.testing.assert_close(quick, slow, atol=1e-3, rtol=1e-4)
