from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from study_helpers import tiny_study, workshop

from ciper.errors import OutputError, TrainingError
from ciper.model.network import Network
from ciper.model.paper import PaperNetwork
from ciper.study.cells import DECODERS, Cell, CellResult, SearchCell, SwapCell, TrainingCell
from ciper.study.networks import recipe, swapped
from ciper.study.training import Deadline, check_steps
from ciper.training.recipe import make_network
from ciper.training.run import Run

CELL = TrainingCell("text", 8, 1e-3, num_checks=2)


def test_every_decoder_has_the_same_trunk() -> None:
    trunks: list[dict[str, torch.Size]] = []
    for decoder in DECODERS:
        network = make_network(recipe(TrainingCell(decoder, 8, 1e-3), tiny_study()))
        assert isinstance(network, Network | PaperNetwork)
        names = (
            (n.replace("encoder.trunk.", "encoder."), p) for n, p in network.named_parameters()
        )
        trunks.append({n: p.shape for n, p in names if n.startswith("encoder.")})
    assert all(trunk == trunks[0] for trunk in trunks)


def test_tasks_and_tokens_choose_losses_and_tokens() -> None:
    study = tiny_study()
    pose = recipe(TrainingCell("ours", 8, 1e-3, task="pose"), study).loss_weights
    assert pose["retrieval"] == 0 and pose["coarse"] > 0
    alone = recipe(TrainingCell("text", 8, 1e-3, task="retrieval"), study).loss_weights
    assert (alone["retrieval"], alone["confidence"], alone["pose"]) == (1.0, 0.0, 0.0)
    one = recipe(TrainingCell("text", 8, 1e-3, num_tokens=1), study).paper
    assert (one.descriptor_from, one.pose_from) == ("class_token", "class_token")
    two = recipe(CELL, study).paper
    assert (swapped(two).descriptor_from, swapped(two).pose_from) == ("pose_token", "class_token")
    assert swapped(swapped(two)) == two
    authors = recipe(TrainingCell("authors", 8, 1e-3), study)
    assert authors.set_criterion.pose_loss == "l1"
    assert authors.paper.decoder.queries == "identical"


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
    assert result is not None and result.num_sittings == 2
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
    ours = replace(CELL, decoder="ours", num_checks=1)
    for cell in (CELL, ours):
        assert shop.train(cell) is not None
    a, b = shop.network(CELL), shop.network(CELL, is_swapped=True)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert 0 <= shop.swap(SwapCell(CELL)).metrics["retrieval_recall@1"] <= 1
    found = shop.search(SearchCell(ours, ours, 3)).metrics
    trained = shop.store.result(ours)
    assert trained is not None
    assert found["retrieval_recall@1"] == trained.metrics["retrieval_recall@1"]
    assert found["end_to_end_recall@1m"] <= found["end_to_end_recall@5m"]


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
        replace(CELL, setting="aligned"),
        SwapCell(CELL),
    ]
    assert len({store.key(cell) for cell in cells}) == len(cells)
    larger = workshop(tmp_path, replace(tiny_study(), batch_size=2)).store
    assert larger.key(CELL) != store.key(CELL)
    store.put(CELL, CellResult({"median_m": 1.0}))
    path = tmp_path / "cells" / f"{store.key(CELL)}.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(OutputError, match="damaged"):
        workshop(tmp_path).store.result(CELL)
