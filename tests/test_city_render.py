"""Rendering: exact geometry by hand, in all quadrants; light, seasons and sensor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ciper.city.light import palette
from ciper.city.parts import Buildings, Cars, City, RoofKind, Surface, Trees
from ciper.city.raycast import CROWN, GROUND, ROOF, SKY, TRUNK, WALL
from ciper.city.render import (
    Light,
    Scene,
    degrade,
    random_light,
    render_aerial,
    render_panoramas,
    trace,
)
from ciper.errors import ConfigError

SIZE_M = 120.0
MIDDLE = SIZE_M / 2.0
OVERCAST = Light(sun_strength=0.0, haze=0.0, cloudiness=1.0)
SUN_IN_SOUTH = Light(sun_azimuth_deg=180.0, sun_elevation_deg=40.0, sun_strength=1.0, haze=0.0)


def rectangle(x: float, y: float, width: float, depth: float, turn_deg: float = 0.0) -> Any:
    """Corners of a box about (x, y), turned counter-clockwise."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, depth / 2]
    a = math.radians(turn_deg)
    turn = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    return corners @ turn + [x, y]


def make_buildings(
    *footprints: NDArray[np.float64],
    eave_m: Any = 12.0,
    kind: RoofKind = RoofKind.FLAT,
    rise_m: float = 0.0,
) -> Buildings:
    num = len(footprints)
    return Buildings(
        footprints=footprints,
        eave_height_m=np.broadcast_to(np.asarray(eave_m, float), (num,)).copy(),
        roof_kind=np.full(num, int(kind)),
        roof_rise_m=np.full(num, rise_m),
        roof_color=np.tile(np.array([[200, 40, 40]], np.uint8), (num, 1)),
        facade_color=np.tile(np.array([[210, 200, 180]], np.uint8), (num, 1)),
        facade_style=np.zeros(num, np.int64),
        style_seed=np.arange(num, dtype=np.uint32),
    )


def make_trees(*rows: tuple[float, float, float, float, float], evergreen: bool = True) -> Trees:
    """Trees from rows of x, y, crown radius, height, trunk height."""
    table = np.array(rows, float).reshape(-1, 5)
    num = len(table)
    return Trees(
        x=table[:, 0],
        y=table[:, 1],
        crown_radius_m=table[:, 2],
        height_m=table[:, 3],
        trunk_height_m=table[:, 4],
        is_evergreen=np.full(num, evergreen),
        color_seed=np.arange(num, dtype=np.uint32),
    )


def make_cars(*rows: tuple[float, float, float]) -> Cars:
    """Red cars of 4.5 x 1.8 x 1.5 m from rows of x, y, heading."""
    table = np.array(rows, float).reshape(-1, 3)
    num = len(table)
    return Cars(
        x=table[:, 0],
        y=table[:, 1],
        heading_deg=table[:, 2],
        length_m=np.full(num, 4.5),
        width_m=np.full(num, 1.8),
        height_m=np.full(num, 1.5),
        color=np.tile(np.array([[200, 10, 10]], np.uint8), (num, 1)),
    )


def make_scene(
    buildings: Buildings | None = None,
    trees: Trees | None = None,
    cars: Cars | None = None,
    surface: NDArray[np.uint8] | None = None,
) -> Scene:
    num_px = int(SIZE_M / 0.25)
    return Scene.from_city(
        City(
            seed=5,
            size_m=SIZE_M,
            surface=np.full((num_px, num_px), Surface.ASPHALT, np.uint8)
            if surface is None
            else surface,
            surface_gsd=0.25,
            buildings=make_buildings() if buildings is None else buildings,
            trees=make_trees() if trees is None else trees,
            cars=make_cars() if cars is None else cars,
            camera_sites=np.zeros((0, 3)),
        )
    )


def pose(heading_deg: float = 0.0, camera_m: float = 2.0) -> NDArray[np.float64]:
    """Stand in the middle of the city."""
    return np.array([MIDDLE, MIDDLE, heading_deg, camera_m])


# A box of 10 x 10 m whose near face is 20 m away spans atan(5 / 20) = 14.036 deg on each side, that
# is 19.96 columns of 360 / 512 deg; its centre is at 256 + (bearing - heading) 512 / 360.
@pytest.mark.parametrize(
    ("bearing_deg", "heading_deg", "center"),
    [
        (0, 0, 256.0),
        (90, 0, 384.0),
        (270, 0, 128.0),
        (0, 90, 128.0),
        (90, 90, 256.0),
        (180, 90, 384.0),
        (180, 200, 227.556),
        (270, 200, 355.556),
        (90, 200, 99.556),
        (0, 200, 483.556),
    ],
)
def test_building_appears_at_its_bearing_and_height(
    bearing_deg: float, heading_deg: float, center: float
) -> None:
    bearing = math.radians(bearing_deg)
    box = rectangle(MIDDLE + 25 * math.sin(bearing), MIDDLE + 25 * math.cos(bearing), 10, 10)
    seen = trace(make_scene(make_buildings(box)), pose(heading_deg))
    columns = np.flatnonzero((seen.kind == WALL).any(axis=0))
    first, last = math.ceil(center - 19.96 - 0.5), math.floor(center + 19.96 - 0.5)
    assert columns.tolist() == list(range(first, last + 1))
    rows = np.flatnonzero(seen.kind[:, int(center)] == WALL)
    # Top: atan(10 / 20) = 26.565 deg -> (45 - 26.565) / 90 * 128 = 26.22; base -5.711 -> 72.12.
    assert (rows[0], rows[-1]) == (26, 71)
    assert seen.depth_m[40, int(center)] == pytest.approx(20.0, abs=0.01)
    assert (seen.owner[seen.kind == WALL] == 0).all()


def test_south_wraps_around_the_panoramas_edge() -> None:
    seen = trace(make_scene(make_buildings(rectangle(MIDDLE, MIDDLE - 25, 10, 10))), pose())
    columns = np.flatnonzero((seen.kind == WALL).any(axis=0))
    assert columns.tolist() == [*range(20), *range(492, 512)]


def test_heights_scale_with_the_camera() -> None:
    scene = make_scene(make_buildings(rectangle(MIDDLE, MIDDLE + 25, 10, 10)))
    rows = np.flatnonzero(trace(scene, pose(camera_m=5.0)).kind[:, 256] == WALL)
    # atan(7 / 20) = 19.29 deg -> 36.57; -atan(5 / 20) = -14.04 deg -> 83.96.
    assert (rows[0], rows[-1]) == (37, 83)


@pytest.mark.parametrize("turn_deg", [17.0, 33.0, -58.0])
def test_oblique_facade_departs_less_than_a_pixel_from_its_line(turn_deg: float) -> None:
    """A 30 m facade whose line passes the camera at 20 m, in a 512 x 1024 panorama to the poles."""
    normal = np.array([math.sin(math.radians(turn_deg)), math.cos(math.radians(turn_deg))])
    east, north = MIDDLE + 24 * normal
    box = rectangle(east, north, 30.0, 8.0, -turn_deg)
    seen = trace(
        make_scene(make_buildings(box)),
        pose(),
        height_px=512,
        width_px=1024,
        elevation_top_deg=90.0,
        elevation_bottom_deg=-90.0,
    )
    bearing = np.deg2rad(((np.arange(1024) + 0.5) / 1024 - 0.5) * 360.0)
    off_axis = bearing - math.radians(turn_deg)
    is_front = np.abs(np.tan(off_axis)) * 20.0 < 15.0
    is_front &= np.cos(off_axis) > 0.0
    columns = np.flatnonzero(is_front)
    assert (seen.kind == WALL).any(axis=0).nonzero()[0].tolist() == columns.tolist()
    distance = 20.0 / np.cos(off_axis[columns])
    top = (90.0 - np.rad2deg(np.arctan(10.0 / distance))) / 180.0 * 512
    base = (90.0 + np.rad2deg(np.arctan(2.0 / distance))) / 180.0 * 512
    is_wall = seen.kind[:, columns] == WALL
    first, past = is_wall.argmax(axis=0), 512 - is_wall[::-1].argmax(axis=0)
    assert np.abs(first - top).max() <= 0.5001
    assert np.abs(past - base).max() <= 0.5001
    np.testing.assert_allclose(seen.depth_m[250, columns], distance, rtol=1e-9)


def test_lower_building_hides_behind_a_taller_one_and_not_the_other_way() -> None:
    near, far = rectangle(MIDDLE, MIDDLE + 20, 30, 6), rectangle(MIDDLE, MIDDLE + 40, 10, 6)
    hidden = trace(make_scene(make_buildings(near, far, eave_m=[12.0, 14.0])), pose())
    assert set(hidden.owner[hidden.kind == WALL]) == {0}
    towering = trace(make_scene(make_buildings(near, far, eave_m=[12.0, 30.0])), pose())
    column = towering.owner[:, 256]
    # The tower's top: atan(28 / 37) = 37.12 deg -> 11.2; the near eave atan(10 / 17) -> 20.8.
    assert (column[11:21] == 1).all()
    assert (column[21:64] == 0).all()


def test_gable_shows_ridge_over_the_eave_and_triangle_at_its_end() -> None:
    # Ridge along east: 20 x 8 m, eave 6 m, rise 4 m; the ridge is 4 m behind the long wall.
    house = make_buildings(
        rectangle(MIDDLE, MIDDLE + 24, 20, 8), eave_m=6.0, kind=RoofKind.GABLE, rise_m=4.0
    )
    seen = trace(make_scene(house), pose())
    kinds = seen.kind[:, 256]
    # Eave atan(4 / 20) = 11.31 deg -> 47.9; ridge atan(8 / 24) = 18.43 deg -> 37.8.
    assert (kinds[48:72] == WALL).all()
    assert (kinds[38:48] == ROOF).all()
    assert (kinds[:38] == SKY).all()
    house = make_buildings(
        rectangle(MIDDLE, MIDDLE + 30, 8, 20), eave_m=6.0, kind=RoofKind.GABLE, rise_m=4.0
    )
    end = trace(make_scene(house), pose())
    # The triangle's tip stands in the end wall, 20 m away: atan(8 / 20) = 21.80 deg -> 33.0.
    assert (end.kind[33:72, 255] == WALL).all()
    assert end.kind[32, 255] == SKY
    hip = make_buildings(
        rectangle(MIDDLE, MIDDLE + 30, 8, 20), eave_m=6.0, kind=RoofKind.HIP, rise_m=4.0
    )
    assert trace(make_scene(hip), pose()).kind[46, 255] == ROOF


def test_camera_above_looks_down_on_flat_roof_and_ground() -> None:
    scene = make_scene(make_buildings(rectangle(MIDDLE, MIDDLE + 20, 10, 10), eave_m=10.0))
    seen = trace(scene, pose(camera_m=30.0), elevation_top_deg=0.0, elevation_bottom_deg=-90.0)
    # Roof from 15 to 25 m, 20 m below: elevations -38.66 .. -53.13 deg; wall to atan(30 / 15).
    elevation = -(np.arange(128) + 0.5) / 128 * 90
    column = seen.kind[:, 256]
    assert (column[(elevation < -38.7) & (elevation > -53.1)] == ROOF).all()
    assert (column[(elevation < -53.2) & (elevation > -63.4)] == WALL).all()
    assert (column[elevation < -63.5] == GROUND).all()


def test_ground_distance_follows_from_camera_height() -> None:
    seen = trace(make_scene(), pose(), height_px=90)
    # Row 75 looks down at 45 - 75.5 = -30.5 deg.
    assert seen.depth_m[75] == pytest.approx(2.0 / math.tan(math.radians(30.5)))
    assert (seen.kind[:45] == SKY).all()
    assert (seen.kind[45:] == GROUND).all()


def test_tree_is_an_ellipsoid_on_a_trunk() -> None:
    # Crown from 3 to 9 m, radius 3 m, 15 m to the east.
    scene = make_scene(trees=make_trees((MIDDLE + 15, MIDDLE, 3.0, 9.0, 3.0)))
    seen = trace(scene, pose(90.0), width_px=720, height_px=180)
    crown = seen.kind == CROWN
    columns = np.flatnonzero(crown.any(axis=0))
    # Half width asin(3 / 15) = 11.54 deg -> 23.1 columns of half a degree.
    assert 360 - 24 <= columns[0] <= 360 - 20
    assert 360 + 19 <= columns[-1] <= 360 + 23
    assert seen.depth_m[crown].min() == pytest.approx(12.0, abs=0.05)
    trunk = np.flatnonzero((seen.kind == TRUNK).any(axis=0))
    assert set(trunk) <= {358, 359, 360, 361}
    assert trunk.size


def test_bare_tree_lets_more_through_than_a_leafy_one() -> None:
    leafy = make_scene(trees=make_trees((MIDDLE, MIDDLE + 12, 3.0, 9.0, 3.0), evergreen=False))
    images = [
        render_panoramas(leafy, pose(), [replace(OVERCAST, season=season)])[0].astype(float)
        for season in (0.0, 1.0)
    ]
    crown = np.s_[30:60, 245:267]
    assert images[1][crown].mean() > images[0][crown].mean() + 15


def test_car_is_low_and_of_its_colour() -> None:
    scene = make_scene(cars=make_cars((MIDDLE - 8, MIDDLE, 0.0)))
    seen = trace(scene, pose(270.0))
    is_car = seen.kind == WALL
    columns = np.flatnonzero(is_car.any(axis=0))
    # 4.5 m at 7.1 m: atan(2.25 / 7.1) = 17.58 deg -> 25.0 columns each side.
    assert (columns[0], columns[-1]) == (231, 280)
    assert np.flatnonzero(is_car.any(axis=1))[0] >= 64  # below the horizon: the camera is higher
    image = render_panoramas(scene, pose(270.0), [OVERCAST])[0].astype(int)
    body = image[79, 250]  # 0.6 m above ground, between the wheels
    assert body[0] > 1.8 * body[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_nearest_wall_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = []
    for center in rng.uniform(5, SIZE_M - 5, (30, 2)):
        if np.hypot(*(center - MIDDLE)) > 14:
            width, depth, turn = rng.uniform([2, 2, 0], [16, 16, 90])
            boxes.append(rectangle(center[0], center[1], width, depth, turn))
    heading = rng.uniform(0, 360)
    seen = trace(make_scene(make_buildings(*boxes)), pose(heading), width_px=64, height_px=31)
    # The middle row looks at the horizon, where only walls and the sky are.
    bearings = np.deg2rad(heading + ((np.arange(64) + 0.5) / 64 - 0.5) * 360)
    expected = [_nearest_crossing(boxes, bearing) for bearing in bearings]
    np.testing.assert_allclose(seen.depth_m[15], expected, rtol=1e-6)


def _nearest_crossing(boxes: list[Any], bearing: float) -> float:
    direction = np.array([math.sin(bearing), math.cos(bearing)])
    best = 1e9
    for box in boxes:
        for a, b in zip(box - MIDDLE, np.roll(box, -1, axis=0) - MIDDLE, strict=True):
            matrix = np.stack([direction, a - b], axis=1)
            if abs(np.linalg.det(matrix)) > 1e-12:
                t, share = np.linalg.solve(matrix, a)
                if t > 0 and 0 <= share <= 1:
                    best = min(best, float(t))
    return best


def _busy_scene() -> Scene:
    boxes = [rectangle(MIDDLE + 25, MIDDLE + 5, 16, 30, 20), rectangle(MIDDLE - 20, 80, 12, 12, 5)]
    return make_scene(
        make_buildings(*boxes),
        make_trees((MIDDLE + 6, MIDDLE - 12, 3.0, 8.0, 2.0), (50.0, 50.0, 2.0, 6.0, 2.0)),
        make_cars((MIDDLE + 4, MIDDLE + 8, 30.0)),
    )


def test_turning_the_camera_rolls_the_panorama() -> None:
    scene = _busy_scene()
    ahead, turned = (
        render_panoramas(scene, np.stack([pose(40.0)]), [SUN_IN_SOUTH])[0],
        render_panoramas(scene, pose(40.0 + 77 * 360 / 512), [SUN_IN_SOUTH])[0],
    )
    # Turning right moves what is seen to the left.
    is_equal = (np.roll(ahead, -77, axis=1) == turned).all(axis=-1)
    assert is_equal.mean() > 0.995
    assert (ahead == turned).all(axis=-1).mean() < 0.7


def test_bearing_range_cuts_columns_out_of_the_panorama() -> None:
    scene = _busy_scene()
    full = render_panoramas(scene, pose(), [OVERCAST])[0]
    part = render_panoramas(
        scene, pose(), [OVERCAST], width_px=128, bearing_range_deg=(-45.0, 45.0)
    )[0]
    assert (part == full[:, 192:320]).all(axis=-1).mean() > 0.99


def test_batch_and_threads_do_not_change_the_pictures() -> None:
    scene, rng = _busy_scene(), np.random.default_rng(0)
    poses = np.stack([pose(30.0 * i) for i in range(5)])
    lights = [random_light(rng) for _ in poses]
    kwargs: dict[str, Any] = {"height_px": 48, "width_px": 96}
    batch = render_panoramas(scene, poses, lights, seed=3, **kwargs)
    assert batch.shape == (5, 48, 96, 3)
    np.testing.assert_array_equal(
        batch, render_panoramas(scene, poses, lights, seed=3, num_threads=2, **kwargs)
    )
    for i in range(5):
        single = render_panoramas(scene, poses[i], [lights[i]], seed=3 + i, **kwargs)
        np.testing.assert_array_equal(batch[i], single[0])


def test_samples_smooth_edges_and_keep_the_brightness() -> None:
    scene = _busy_scene()
    coarse, smooth = (
        render_panoramas(scene, pose(), [OVERCAST], num_samples=n)[0].astype(float) for n in (1, 2)
    )
    assert smooth.mean() == pytest.approx(coarse.mean(), abs=2.0)
    assert np.abs(np.diff(smooth, axis=1)).mean() < np.abs(np.diff(coarse, axis=1)).mean()


def test_white_paint_to_the_north_shows_ahead() -> None:
    num_px = int(SIZE_M / 0.25)
    surface = np.full((num_px, num_px), Surface.ASPHALT, np.uint8)
    surface[: num_px // 2 - 8, num_px // 2 - 2 : num_px // 2 + 2] = Surface.MARKING
    scene = make_scene(surface=surface)
    image = render_panoramas(scene, pose(), [OVERCAST])[0].astype(float).mean(axis=-1)
    assert image[100, 255] > image[100, 128] + 60  # ahead against west
    assert image[100, 255] > image[100, 0] + 60  # behind
    aerial = render_aerial(scene, OVERCAST).astype(float).mean(axis=-1)
    assert aerial[20, 120] > aerial[220, 120] + 60  # row 0 is north


def test_aerial_places_roofs_cars_and_trees() -> None:
    box = rectangle(90.0, 100.0, 20, 10)
    scene = make_scene(
        make_buildings(box), make_trees((30.0, 30.0, 4.0, 9.0, 2.0)), make_cars((30.0, 90.0, 90.0))
    )
    aerial = render_aerial(scene, OVERCAST).astype(int)
    assert aerial.shape == (240, 240, 3)
    red = aerial[..., 0] > 1.5 * aerial[..., 1]
    rows, cols = np.nonzero(red[:, 120:])
    # x 80..100 m -> columns 160..200; y 95..105 m -> rows 30..50.
    assert (rows.min(), rows.max() + 1, cols.min() + 120, cols.max() + 121) == (30, 50, 160, 200)
    rows, cols = np.nonzero(red[:, :120])
    assert 55 <= cols.min() <= 57 and 63 <= cols.max() <= 65  # 4.5 m long, heading east
    assert rows.min() >= 57 and rows.max() <= 62
    assert aerial[180, 60, 1] > 1.15 * aerial[180, 60, 0]  # green
    assert render_aerial(scene, OVERCAST, gsd=0.75).shape == (160, 160, 3)


def test_ridge_divides_a_roof_into_a_sunny_and_a_shady_side() -> None:
    house = make_buildings(
        rectangle(MIDDLE, MIDDLE, 20, 10), eave_m=5.0, kind=RoofKind.GABLE, rise_m=4.0
    )
    aerial = render_aerial(make_scene(house), SUN_IN_SOUTH).astype(float).mean(axis=-1)
    assert aerial[122:128, 104:136].mean() > aerial[112:118, 104:136].mean() + 25


def test_shadow_falls_away_from_the_sun_in_both_views() -> None:
    scene = make_scene(make_buildings(rectangle(MIDDLE, MIDDLE - 14, 20, 10)))
    aerial = render_aerial(scene, SUN_IN_SOUTH).astype(float).mean(axis=-1)
    # The box ends at y = 51; 12 m / tan(40 deg) = 14.3 m of shadow reach y = 65.3.
    assert aerial[112:128, 120].mean() < aerial[70:100, 120].mean() - 30
    assert aerial[112:128, 120].mean() < aerial[170:200, 120].mean() - 30
    seen = render_panoramas(scene, np.array([MIDDLE, 75.0, 180.0, 2.0]), [SUN_IN_SOUTH])[0]
    # From y = 75 the shadow begins 9.7 m ahead: rows at -7 deg lie in it, at -30 deg not.
    assert seen[74, 256].mean() < seen[106, 256].mean() - 30


def test_season_and_snow_change_the_ground() -> None:
    summer, winter = palette(Light()), palette(Light(season=1.0))
    snow = palette(Light(season=1.0, snow=1.0))
    grass = int(Surface.GRASS)
    assert summer[grass, 1] > 1.5 * summer[grass, 0]
    assert winter[grass, 1] < 1.1 * winter[grass, 0]
    assert snow[grass, :3].min() > 0.75
    wet = palette(Light(wetness=1.0))
    assert wet[Surface.ASPHALT, 0] < summer[Surface.ASPHALT, 0]


def test_haze_hides_what_is_far() -> None:
    scene = make_scene(make_buildings(rectangle(MIDDLE, MIDDLE + 50, 30, 6)))
    contrast = []
    for haze in (0.0, 0.05):
        image = render_panoramas(scene, pose(), [replace(OVERCAST, haze=haze)])[0].astype(float)
        contrast.append(image[55:63, 240:272].mean(axis=-1).std())
    assert contrast[1] < 0.5 * contrast[0]


def test_random_lights_make_well_exposed_pictures() -> None:
    scene, rng = _busy_scene(), np.random.default_rng(1)
    lights = [random_light(rng) for _ in range(60)]
    assert {light.sun_strength == 0.0 for light in lights} == {True, False}
    assert min(light.season for light in lights) < 0.1 < 0.9 < max(x.season for x in lights)
    images = render_panoramas(
        scene, np.tile(pose(), (60, 1)), lights, height_px=32, width_px=64
    ).astype(float)
    means = images.mean(axis=(1, 2, 3))
    assert means.min() > 50 and means.max() < 225


def test_degrade_is_seeded_and_keeps_the_input() -> None:
    image = render_panoramas(_busy_scene(), pose(), [OVERCAST], height_px=48, width_px=112)[0]
    before = image.copy()
    results = [degrade(image, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()
    for seed in range(12):
        spoilt = degrade(image, np.random.default_rng(seed))
        assert spoilt.shape == image.shape and spoilt.dtype == np.uint8
        assert 0.5 < np.abs(spoilt.astype(float) - image).mean() < 45


def test_impossible_requests_are_refused() -> None:
    scene = make_scene()
    with pytest.raises(ConfigError, match="2 lights for 1 poses"):
        render_panoramas(scene, pose(), [OVERCAST, OVERCAST])
    with pytest.raises(ConfigError, match=r"expected \(N, 4\)"):
        render_panoramas(scene, np.zeros((1, 3)), [OVERCAST])
    with pytest.raises(ConfigError, match="not finite or not above ground"):
        render_panoramas(scene, pose(camera_m=0.0), [OVERCAST])
    with pytest.raises(ConfigError, match="90 >= top > bottom >= -90"):
        render_panoramas(scene, pose(), [OVERCAST], elevation_top_deg=-60.0)
    with pytest.raises(ConfigError, match="is empty"):
        render_panoramas(scene, pose(), [OVERCAST], width_px=0)
    with pytest.raises(ConfigError, match="gsd of 0"):
        render_aerial(scene, OVERCAST, gsd=0.0)
    triangle = np.array([[10.0, 10.0], [20.0, 10.0], [15.0, 18.0]])
    with pytest.raises(ConfigError, match="3 corners"):
        make_scene(make_buildings(triangle, kind=RoofKind.GABLE, rise_m=2.0))
