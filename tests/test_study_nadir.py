from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from gallery_helpers import real_data, write_raster
from study_helpers import SMALL_TRUNK

from ciper.errors import DatasetError
from ciper.geo import forward, right
from ciper.model.load import load_model
from ciper.model.model import CiperModel
from ciper.model.network import AerialCode, Network, NetworkConfig
from ciper.study import nadir
from ciper.study.nadir import (
    NadirPlaces,
    centre,
    measure_nadir,
    nadir_baselines,
    nadir_folder,
    read_nadir,
    with_plan_head,
)
from ciper.training.gradients import split

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
NUM_PLACES = 3
SIDE_PX = 300
# Red grows to the east and green to the north, by one a metre; blue tells places and years.
EAST, NORTH = 200_000.0, 4_000_000.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three places in both years, and one that only the first one shows."""
    folder = tmp_path_factory.mktemp("naip")
    row, column = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    for year, places in ((2018, range(NUM_PLACES + 1)), (2020, range(NUM_PLACES))):
        for place in places:
            blue = np.full_like(row, 240 - 20 * place if year == 2020 else 40 * place)
            array = np.stack([column // 2 + 20, (SIDE_PX - row) // 2 + 20, blue]).astype(np.uint8)
            # Close to the zone's middle, where its north is true north.
            transform = Affine(0.5, 0, EAST * 2.5 + 1000 * place, 0, -0.5, NORTH)
            path = folder / f"some_city_{year}_{place}.tif"
            write_raster(path, array, crs="EPSG:32610", transform=transform)
    return folder


@pytest.fixture(scope="module")
def places(folder: Path) -> NadirPlaces:
    return read_nadir(folder)


def test_photo_and_chip_show_the_same_place_in_two_years(places: NadirPlaces) -> None:
    pairs = places.pairs
    assert len(pairs.pose) == NUM_PLACES
    for i in range(NUM_PLACES):
        seen, valid = pairs.is_visible[i].numpy(), pairs.is_valid[i].numpy()
        assert 0.1 < seen.mean() < 0.45 and valid.mean() > 0.6
        chip_blue = pairs.chip[i].numpy()[valid][:, 2]
        assert np.abs(chip_blue.astype(int) - (240 - 20 * i)).max() <= 1
        photo_blue = np.median(pairs.canvas[i].numpy()[seen][:, 2])
        assert abs(photo_blue - 40 * i) < 20


def test_poses_are_where_the_colours_say(places: NadirPlaces) -> None:
    """Red and green about the photo's middle and ahead of it, as the chip has them there.

    Pairs may be mirrored and turned by quarters, photo and chip alike, so metres are read off the
    chip itself.
    """
    pairs = places.pairs
    for i in range(NUM_PLACES):
        x_m, y_m, heading_deg = pairs.pose[i].tolist()
        assert max(abs(x_m), abs(y_m)) <= 32.0
        chip, plan = pairs.chip[i].numpy().astype(float), pairs.canvas[i].numpy().astype(float)
        for ahead_m, aside_m in ((0, 0), (14, 0), (-14, 0), (0, 14), (0, -14)):
            place = np.array([x_m, y_m])
            place = place + ahead_m * np.array(forward(heading_deg))
            place = place + aside_m * np.array(right(heading_deg))
            on_chip = chip[round(128 - 2 * place[1]), round(128 + 2 * place[0])]
            row, column = 128 - 2 * ahead_m, 128 + 2 * aside_m
            on_plan = plan[row - 4 : row + 5, column - 4 : column + 5].mean((0, 1))
            # The camera changes gain and gamma, and its tilt is a little off.
            difference = (on_plan - on_chip)[:2] / on_chip[:2]
            assert np.abs(difference - difference.mean()).max() < 0.12, (i, ahead_m, aside_m)


def test_only_places_of_both_years_count_and_the_digest_tells_them(
    folder: Path, places: NadirPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = read_nadir(folder)
    assert again.digest == places.digest
    assert torch.equal(again.pairs.canvas, places.pairs.canvas)
    monkeypatch.setattr(nadir, "NUM_PLACES", 2)
    fewer = read_nadir(folder)
    assert len(fewer.pairs.pose) == 2 and fewer.digest != places.digest


def test_a_folder_without_both_years_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"holds 0 places of 2018 and 2020; expected files named"
    ):
        read_nadir(tmp_path)


def network() -> Network:
    torch.manual_seed(0)
    return Network(NetworkConfig(encoder=SMALL_TRUNK)).eval()


def test_plan_views_are_read_with_the_maps_of_chips() -> None:
    plain = network()
    made = with_plan_head(plain)
    assert made.plan is not None
    for name, value in plain.state_dict().items():
        assert torch.equal(made.state_dict()[name], value)
    for own, copied in zip(made.maps.parameters(), made.plan.lift.maps.parameters(), strict=True):
        assert torch.equal(own, copied) and own.data_ptr() != copied.data_ptr()
    # A head that was trained makes no difference.
    with torch.no_grad():
        made.plan.lift.maps.to_fine.weight.zero_()
    again = with_plan_head(made)
    assert again.plan is not None
    assert torch.equal(again.plan.lift.maps.to_fine.weight, made.maps.to_fine.weight)


def test_what_all_chips_have_in_common_is_taken_off(places: NadirPlaces) -> None:
    made = with_plan_head(network())
    pairs = places.pairs
    with torch.no_grad():
        before = made.encode_aerial(pairs.chip, pairs.is_valid)
        centre(made, pairs)
        after = made.encode_aerial(pairs.chip, pairs.is_valid)
        mean = before.coarse.mean((0, 2, 3))
    assert mean.abs().max() > 0.01
    torch.testing.assert_close(after.coarse, before.coarse - mean[:, None, None])
    assert after.fine.mean((0, 2, 3)).abs().max() < 1e-4
    assert made.plan is not None
    assert torch.equal(made.plan.lift.maps.to_coarse.bias, made.maps.to_coarse.bias)


def test_chips_are_centred_in_bfloat16_too(
    places: NadirPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were cast before they changed must not be used after."""
    seen: list[torch.Tensor] = []

    def look(network: Network, photo: object, aerial: AerialCode, *_: object) -> Floats:
        seen.append(aerial.coarse.float().mean((0, 2, 3)))
        return np.zeros(len(aerial.coarse))

    monkeypatch.setattr("ciper.device.fast_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(nadir, "pose_evidence", look)
    measure_nadir(network(), places)
    assert seen[0].abs().max() < 0.01


def test_measuring_leaves_the_network_alone_and_ranks_the_own_chip(
    places: NadirPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = network()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    figures = measure_nadir(plain, places)
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    assert 1 <= figures["matched_rank"] <= NUM_PLACES
    asked: list[int] = []

    def second(*_: object) -> Floats:
        asked.append(len(asked))
        scores = np.zeros(NUM_PLACES)
        scores[asked[-1]], scores[asked[-1] - 1] = 1.0, 2.0
        return scores

    monkeypatch.setattr(nadir, "pose_evidence", second)
    figures = measure_nadir(plain, places)
    assert (figures["matched_recall@1"], figures["matched_rank"]) == (0.0, 2.0)


def test_chance_is_what_knowing_nothing_gives(places: NadirPlaces) -> None:
    figures = nadir_baselines(places)
    assert figures["center"]["matched_recall@1"] == pytest.approx(1 / 3)
    assert figures["random"]["matched_rank"] == 2.0
    distance = places.pairs.pose[:, :2].norm(dim=1).median()
    assert figures["center"]["median_m"] == pytest.approx(float(distance))


def test_the_folder_is_that_of_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPER_REAL_DATA", str(tmp_path))
    assert nadir_folder() is None
    (tmp_path / "naip").mkdir()
    assert nadir_folder() == tmp_path / "naip"
    monkeypatch.delenv("CIPER_REAL_DATA")
    assert nadir_folder() is None


@pytest.mark.slow
def test_weights_of_simulated_streets_find_real_places() -> None:
    """Of 32 places, without having been trained for it; chance is 3 %."""
    model = load_model("ground", "cpu")
    assert isinstance(model, CiperModel)
    found = read_nadir(real_data() / "naip")
    few = NadirPlaces(split(found.pairs, 32)[0], found.digest)
    figures = measure_nadir(model.network, few)
    assert figures["matched_recall@1"] > 0.5
    assert figures["median_m"] < 1.5 and figures["heading_median_deg"] < 2.0
