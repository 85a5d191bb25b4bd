from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_helpers import TINY

from ciper.model.decoder import COARSE, FINE, Correlation, TemplateSpec
from ciper.model.network import Network
from ciper.model.plan import PlanDescriptor, _points, _read
from ciper.model.pretrained import initialise

WITH_PLAN = replace(TINY, has_plan_head=True)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(WITH_PLAN).eval()


def plans(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(size, 3, 16, 16, generator=generator) * 255
    plan = torch.nn.functional.interpolate(small, (256, 256), mode="bilinear")
    is_visible = torch.zeros(size, 256, 256, dtype=torch.bool)
    is_visible[:, 60:196, 40:216] = True
    return plan.permute(0, 2, 3, 1).to(torch.uint8), is_visible


def hill(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Something smooth that is the same in no two directions."""
    return torch.sin(0.09 * x + 0.04 * y) + 0.5 * torch.cos(0.05 * x - 0.11 * y + 0.7)


@pytest.mark.parametrize("spec", [COARSE, FINE])
def test_a_template_shows_what_lies_around_the_foot(spec: TemplateSpec) -> None:
    """Of a map that is a known function of the metres, at all headings."""
    cells = round(128 / spec.cell_m)
    middle = (torch.arange(cells) + 0.5 - cells / 2) * spec.cell_m
    x, y = middle[None, :].expand(cells, cells), -middle[:, None].expand(cells, cells)
    maps = torch.zeros(1, 16, cells, cells)
    maps[0, 0] = hill(x, y)
    polar = _read(maps, torch.ones(1, 256, 256), _points(spec, 128.0))
    correlation = Correlation()
    with torch.no_grad():
        correlation.coarse_log_scale.zero_()
    resample = correlation.to_coarse_cells if spec is COARSE else correlation.to_fine_cells
    found = resample(polar)[:, :, :, 0, 0]
    half = spec.template_cells // 2
    span = torch.arange(-half, half + 1) * spec.cell_m
    east, north = span[None, :].expand(17, 17), -span[:, None].expand(17, 17)
    inner = torch.hypot(east, north) < spec.ring_m[-1] - spec.cell_m
    num = spec.num_headings if spec is COARSE else 9
    first = 0 if spec is COARSE else -4
    for index in range(0, num, 4):
        turn = np.deg2rad((first + index) * spec.heading_step_deg)
        # A point of the world, to the right of the heading and ahead.
        across = east * np.cos(turn) - north * np.sin(turn)
        along = east * np.sin(turn) + north * np.cos(turn)
        wanted = hill(across, along)[inner]
        assert torch.corrcoef(torch.stack([found[index][inner], wanted]))[0, 1] > 0.985
        assert (found[index][inner] - wanted).abs().mean() < 0.1


def test_where_nothing_is_visible_the_template_is_empty() -> None:
    is_visible = torch.zeros(1, 256, 256)
    is_visible[:, :, 128:] = 1  # the right half
    polar = _read(torch.ones(1, 16, 32, 32), is_visible, _points(COARSE, 128.0))
    # Bearings from -155 to -25 degrees, and 25 to 155, 5 m away or more: 2 m from the edge.
    assert (polar[0, 4:28, 1:] == 0).all()
    assert (polar[0, 36:60, 1:] > 0.999).all()


def test_codes_of_plans_and_canvases_have_one_form() -> None:
    net, (plan, is_visible) = network(), plans(3)
    canvas = torch.randint(0, 255, (2, 128, 512, 3), dtype=torch.uint8)
    with torch.no_grad():
        of_plan = net.encode_ground(plan, is_visible)
        of_canvas = net.encode_ground(canvas, torch.ones(2, 128, 512, dtype=torch.bool))
    for name in ("descriptor", "polar_coarse", "polar_fine"):
        assert getattr(of_plan, name).shape[1:] == getattr(of_canvas, name).shape[1:]
    assert of_plan.is_plan.all() and not of_canvas.is_plan.any()
    assert of_plan.visible_share.tolist() == pytest.approx([136 * 176 / 256**2] * 3)
    assert torch.linalg.norm(of_plan.descriptor, dim=1).tolist() == pytest.approx([1.0] * 3)


def test_batched_is_single_and_the_unseen_does_not_matter() -> None:
    net, (plan, is_visible) = network(), plans(3)
    other = torch.where(is_visible[..., None], plan, 255 - plan)
    with torch.no_grad():
        together = net.encode_ground(plan, is_visible)
        changed = net.encode_ground(other, is_visible)
        for i in range(3):
            alone = net.encode_ground(plan[i : i + 1], is_visible[i : i + 1])
            for name in ("descriptor", "polar_coarse", "polar_fine"):
                whole = getattr(together, name)[i : i + 1]
                torch.testing.assert_close(getattr(alone, name), whole, atol=1e-5, rtol=1e-4)
    for name in ("descriptor", "polar_coarse", "polar_fine"):
        assert torch.equal(getattr(together, name), getattr(changed, name))


def test_the_head_starts_as_the_chips(tmp_path_factory: pytest.TempPathFactory) -> None:
    """From weights without a plan head, the others are taken and it starts from the chips' own."""
    from model_helpers import write_tiny_weights

    path = write_tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    net = network(seed=5)
    taken = initialise(net, str(path))
    assert net.plan is not None
    assert all(name.startswith("plan.") for name in taken.made) and taken.made
    for name, value in net.maps.state_dict().items():
        assert torch.equal(net.plan.lift.maps.state_dict()[name], value)
    for name, value in net.place_descriptors.state_dict().items():
        assert torch.equal(net.plan.descriptor.state_dict()[name], value)


def test_a_head_that_the_network_does_not_have_is_left_out(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from model_helpers import write_tiny_weights

    folder = tmp_path_factory.mktemp("weights")
    path = write_tiny_weights(folder / "headed.safetensors", config=WITH_PLAN)
    plain = Network(TINY)
    taken = initialise(plain, str(path))
    assert not any(name.startswith("plan.") for name in taken.taken) and not taken.made
    headed = network(seed=9)
    initialise(headed, str(path))
    assert torch.equal(headed.maps.to_coarse.weight, plain.maps.to_coarse.weight)
    torch.manual_seed(0)
    wanted = Network(WITH_PLAN).plan
    assert headed.plan is not None and wanted is not None
    for name, value in wanted.state_dict().items():
        assert torch.equal(headed.plan.state_dict()[name], value)


def test_a_descriptor_is_blind_to_quarter_turns() -> None:
    torch.manual_seed(0)
    descriptor = PlanDescriptor(width=8, descriptor_dim=16, patches=16, patch_m=8.0)
    patches, is_visible = torch.randn(2, 16, 16, 8), torch.zeros(2, 256, 256)
    is_visible[:, 40:200, 80:240] = 1.0
    with torch.no_grad():
        one = descriptor(patches, is_visible)
        for turns in (1, 2, 3):
            turned = descriptor(patches.rot90(turns, (1, 2)), is_visible.rot90(turns, (1, 2)))
            torch.testing.assert_close(turned, one, atol=1e-4, rtol=1e-3)
        other = descriptor(torch.randn(2, 16, 16, 8), is_visible)
    assert (other - one).abs().max() > 0.05


def test_the_same_seed_draws_the_same_weights_without_the_head() -> None:
    torch.manual_seed(3)
    plain = Network(TINY).state_dict()
    torch.manual_seed(3)
    headed = Network(WITH_PLAN).state_dict()
    assert all(torch.equal(headed[name], value) for name, value in plain.items())


def test_galleries_do_not_depend_on_the_head(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Chips are encoded without it: who trains it alone keeps galleries."""
    from model_helpers import write_tiny_weights

    from ciper.model.load import load_model

    folder = tmp_path_factory.mktemp("weights")
    plain = load_model(write_tiny_weights(folder / "plain.safetensors"), "cpu")
    headed = load_model(write_tiny_weights(folder / "headed.safetensors", config=WITH_PLAN), "cpu")
    other = load_model(write_tiny_weights(folder / "other.safetensors", seed=1), "cpu")
    assert plain.model_hash == headed.model_hash != other.model_hash
