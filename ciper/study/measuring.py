"""Figures of a study's networks on rendered cities: poses in true chips, and searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ciper.device import mixed_precision
from ciper.metrics import (
    PoseErrors,
    baseline_answers,
    pose_errors,
    pose_metrics,
    ranks_from_similarity,
    recall_at_k,
    recall_within,
)
from ciper.model.decoder import FINE
from ciper.model.matcher import Evidence, MatchConfig, best_pose, match_codes, window_poses
from ciper.model.network import AerialCode, GroundCode, Network
from ciper.model.paper import PaperAerial, PaperGround, PaperNetwork
from ciper.model.two_way import hypothesis_poses
from ciper.study.cells import Setting
from ciper.study.pairs import ALIGNED, Gallery, StudyPairs, as_pinhole
from ciper.training.gradients import joined, take

Floats = NDArray[np.floating[Any]]
StudyNetwork = Network | PaperNetwork
CodeT = TypeVar("CodeT", bound=GroundCode | AerialCode | PaperGround | PaperAerial)

ENCODED_AT_ONCE = 32
# Chips that a set decoder meets at a time.
DECODED_AT_ONCE = 64
POSE_FIGURES = ("mean_m", "median_m", "recall@1m", "recall@5m", "heading_median_deg")


@dataclass(frozen=True)
class Photos:
    """The test photos that were encoded: codes and labels of all of them."""

    code: GroundCode | PaperGround
    true_chip: NDArray[np.int64]
    city: NDArray[np.int64]
    camera_m: Floats
    heading_deg: Floats


@contextmanager
def evaluation(network: StudyNetwork) -> Iterator[torch.device]:
    """Evaluation mode without gradients, in the device's precision; yields the network's device."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), mixed_precision(device):
            yield device
    finally:
        network.train(was_training)


def measure_pose(
    network: StudyNetwork, pairs: StudyPairs, *, is_pinhole: bool = False
) -> dict[str, float]:
    """Figures of the poses found in the true chips of all photos, panoramas or pinhole views."""
    setting = pairs.setting
    found, true = [], []
    with evaluation(network) as device:
        for batch in pairs.fixed(ENCODED_AT_ONCE):
            moved = (as_pinhole(batch) if is_pinhole else batch).to(device)
            ground = network.encode_ground(moved.canvas, moved.is_visible)
            aerial = network.encode_aerial(moved.chip, moved.is_valid)
            found.append(predict_poses(network, ground, aerial, setting))
            true.append(batch.pose.numpy())
    errors = pose_errors(np.concatenate(found), np.concatenate(true))
    return pose_figures(errors)


def pose_figures(errors: PoseErrors) -> dict[str, float]:
    """The figures of poses that the study shows."""
    all_figures = pose_metrics(errors)
    return {name: all_figures[name] for name in POSE_FIGURES}


def predict_poses(
    network: StudyNetwork,
    ground: GroundCode | PaperGround,
    aerial: AerialCode | PaperAerial,
    setting: Setting = "unknown",
) -> Floats:
    """The pose of photo i in chip i: `(B, 3)`.

    What the setting says of all poses, a set decoder has learned; to our evidence it is a prior.
    """
    if isinstance(network, PaperNetwork):
        assert isinstance(ground, PaperGround)
        assert isinstance(aerial, PaperAerial)
        hypotheses = network.decode(ground, aerial.patches)
        best = hypotheses.logit.argmax(1)
        pose = hypotheses.pose[torch.arange(len(best)), best]
        return _poses(pose, network)
    poses = [
        find_pose(network, take(ground, i, i + 1), take(aerial, i, i + 1), setting)
        for i in range(len(ground.descriptor))
    ]
    return np.stack([pose for _, pose in poses])


def find_pose(
    network: StudyNetwork,
    ground: GroundCode | PaperGround,
    aerial: AerialCode | PaperAerial,
    setting: Setting = "unknown",
) -> tuple[int, Floats]:
    """The chip out of R, and the pose `(3,)` in it, that one photo fits best."""
    if isinstance(network, PaperNetwork):
        assert isinstance(ground, PaperGround)
        assert isinstance(aerial, PaperAerial)
        hypotheses = network.decode(ground, aerial.patches)
        index = int(hypotheses.logit.argmax())
        chip, query = divmod(index, hypotheses.logit.shape[1])
        return chip, _poses(hypotheses.pose[chip, query][None], network)[0]
    assert isinstance(ground, GroundCode)
    assert isinstance(aerial, AerialCode)
    evidence = match_codes(
        network,
        ground,
        aerial,
        log_prior=None if setting == "unknown" else aligned_prior(len(aerial.coarse)),
        config=MatchConfig(num_windows=num_windows(len(aerial.coarse))),
    )
    return best_pose(with_setting(evidence, setting))


def num_windows(num_chips: int) -> int:
    """How many modes of some chips get a closer look: of one chip few need it."""
    return max(4, 3 * num_chips)


def _poses(pose: Tensor, network: PaperNetwork) -> Floats:
    poses = hypothesis_poses(pose.float(), network.config.side_m)
    return np.asarray(poses.cpu().numpy(), dtype=np.float64)


def with_setting(evidence: Evidence, setting: Setting) -> Evidence:
    """Evidence on fine cells, weighed by what the setting says."""
    if setting == "unknown":
        return evidence
    x_m, y_m, heading_deg = window_poses(evidence)
    fine = evidence.fine + ALIGNED.log_heading(heading_deg, FINE)[:, :, None, None]
    fine = fine + ALIGNED.log_offset(y_m, FINE)[:, None, :, None]
    fine = fine + ALIGNED.log_offset(x_m, FINE)[:, None, None, :]
    return replace(evidence, fine=fine.astype(np.float32))


def aligned_prior(num_chips: int) -> NDArray[np.float32]:
    """What the aligned setting says, on the coarse cells: `(R, 32, 16, 16)` log factors."""
    known = ALIGNED.on_coarse_cells()
    return np.broadcast_to(known, (num_chips, *known.shape))


def pick(code: CodeT, chosen: NDArray[np.int64]) -> CodeT:
    """The chosen of a code's photos or chips, in their order."""
    index = torch.from_numpy(chosen)
    parts = (getattr(code, f.name) for f in fields(code))
    return type(code)(*(part[index.to(part.device)] for part in parts))


# ------------------------------------------------------------------------------------------ search


def encode_gallery(network: StudyNetwork, gallery: Gallery) -> AerialCode | PaperAerial:
    """Codes of all chips."""
    with evaluation(network) as device:
        return joined(
            network.encode_aerial(chip.to(device), is_valid.to(device))
            for chip, is_valid in zip(
                gallery.chip.split(ENCODED_AT_ONCE),
                gallery.is_valid.split(ENCODED_AT_ONCE),
                strict=True,
            )
        )


def encode_photos(network: StudyNetwork, pairs: StudyPairs, gallery: Gallery) -> Photos:
    """Codes and labels of all photos of some cities."""
    codes, labels = [], []
    with evaluation(network) as device:
        for batch in pairs.fixed(ENCODED_AT_ONCE):
            moved = batch.to(device)
            codes.append(network.encode_ground(moved.canvas, moved.is_visible))
            labels.append((gallery.true_chips(batch), batch.city, batch.camera_m, batch.pose[:, 2]))
        code = joined(codes)
    columns = [np.concatenate([np.asarray(part) for part in c]) for c in zip(*labels, strict=True)]
    return Photos(code, *columns)


def similarity(ground: GroundCode | PaperGround, aerial: AerialCode | PaperAerial) -> Floats:
    """`(N, R)` cosine of every photo and the most similar place of every chip."""
    places = torch.einsum("nd,rpd->nrp", ground.descriptor.float(), aerial.descriptors.float())
    return np.asarray(places.amax(-1).cpu().numpy(), dtype=np.float64)


def pose_evidence(
    network: StudyNetwork, ground: GroundCode | PaperGround, aerial: AerialCode | PaperAerial
) -> Floats:
    """`(R,)` what the pose decoder says of each chip, whatever the pose; to one photo.

    That is the log evidence of all its poses, or the logit of the most confident hypothesis.
    """
    if isinstance(network, PaperNetwork):
        assert isinstance(ground, PaperGround)
        assert isinstance(aerial, PaperAerial)
        parts = aerial.patches.split(DECODED_AT_ONCE)
        logit = torch.cat([network.decode(ground, part).logit.amax(1) for part in parts])
        return np.asarray(logit.float().cpu().numpy(), dtype=np.float64)
    assert isinstance(ground, GroundCode)
    assert isinstance(aerial, AerialCode)
    evidence = match_codes(network, ground, aerial, config=MatchConfig(num_windows=1))
    logits = evidence.coarse.reshape(len(evidence.coarse), -1).astype(np.float64)
    return np.asarray(np.logaddexp.reduce(logits, axis=1))


def recall_of_first(scores: Floats, true_chip: NDArray[np.int64]) -> float:
    """Share of photos whose true chip has the highest score: `(N, R)` and `(N,)`."""
    return recall_at_k(ranks_from_similarity(scores, true_chip), 1)


def measure_retrieval(
    network: StudyNetwork, pairs: StudyPairs, gallery: Gallery, *, num_matched: int = 0
) -> dict[str, float]:
    """Recalls over the chips of all cities together.

    Args:
        network: that is measured.
        pairs: whose photos are searched for.
        gallery: of the same cities.
        num_matched: how many of the photos are held against all chips by their pose evidence, too;
            they are spread evenly.
    """
    photos = encode_photos(network, pairs, gallery)
    aerial = encode_gallery(network, gallery)
    true = photos.true_chip
    figures = {"retrieval_recall@1": recall_of_first(similarity(photos.code, aerial), true)}
    if num_matched:
        chosen = np.unique(np.linspace(0, len(true) - 1, num_matched).round().astype(np.int64))
        with evaluation(network):
            scores = [pose_evidence(network, take(photos.code, i, i + 1), aerial) for i in chosen]
        figures["matched_recall@1"] = recall_of_first(np.stack(scores), true[chosen])
    return figures


def measure_search(
    networks: tuple[StudyNetwork, StudyNetwork],
    pairs: StudyPairs,
    gallery: Gallery,
    num_shortlist: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """End to end: one network's descriptors propose chips, the other finds chip and pose.

    Args:
        networks: for retrieval and for the pose; they may be the same.
        pairs: whose photos are searched for.
        gallery: of the same cities.
        num_shortlist: how many chips are proposed.
        progress: called with (done, total).
    """
    proposer, finder = networks
    asked = encode_photos(proposer, pairs, gallery)
    scores = similarity(asked.code, encode_gallery(proposer, gallery))
    chips = encode_gallery(finder, gallery)
    photos = encode_photos(finder, pairs, gallery)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :num_shortlist]
    centres, cities = gallery.centre_m.numpy(), gallery.city.numpy()
    answers, chosen = np.empty((len(order), 3)), np.empty(len(order), dtype=np.int64)
    with evaluation(finder):
        for i, shortlist in enumerate(order):
            best, pose = find_pose(finder, take(photos.code, i, i + 1), pick(chips, shortlist))
            chip = chosen[i] = shortlist[best]
            is_city = cities[chip] == photos.city[i]
            answers[i] = (*(centres[chip] + pose[:2]), pose[2]) if is_city else np.nan
            progress(i + 1, len(order))
    truth = np.column_stack([photos.camera_m, photos.heading_deg])
    errors = pose_errors(answers, truth)
    return {
        "retrieval_recall@1": recall_of_first(scores, asked.true_chip),
        "chosen_recall@1": float((chosen == asked.true_chip).mean()),
        "end_to_end_recall@1m": recall_within(errors.position_m, 1.0),
        "end_to_end_recall@5m": recall_within(errors.position_m, 5.0),
    }


# --------------------------------------------------------------------------------------- baselines


def baselines(
    pairs: StudyPairs, *, num_references: int, seed: int = 0
) -> Mapping[str, Mapping[str, float]]:
    """What knowing nothing finds in the true chips: their centres, and random places in them.

    With an aligned heading both know the heading, as every network then could.
    """
    truth = np.concatenate([batch.pose.numpy() for batch in pairs.fixed(ENCODED_AT_ONCE)])
    is_aligned, reach_m = pairs.setting == "aligned", pairs.reach_m
    answers = chance_answers(len(truth), reach_m, seed)
    figures = {}
    for name, answer in answers.items():
        if is_aligned:
            answer[:, 2] = 0.0
        figures[name] = {
            **pose_figures(pose_errors(answer, truth)),
            "retrieval_recall@1": 1.0 / num_references,
            "matched_recall@1": 1.0 / num_references,
        }
    return figures


def chance_answers(num_answers: int, reach_m: float, seed: int) -> Mapping[str, Floats]:
    """`(N, 3)` poses: of chips their centres, and random places up to `reach_m` from those."""
    rng = np.random.default_rng([seed, 5])
    return baseline_answers(num_answers, bounds_m=(-reach_m, -reach_m, reach_m, reach_m), rng=rng)


def chance_figures(
    truth: Floats, num_references: int, *, reach_m: float, seed: int, ranked: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """What knowing nothing finds of `(N, 3)` poses in their own of some chips.

    Args:
        truth: the poses.
        num_references: how many chips there are.
        reach_m: see `chance_answers`.
        seed: of the random answers.
        ranked: by what chips are ranked: "retrieval", "matched".
    """
    chance = {f"{name}_recall@1": 1 / num_references for name in ranked}
    chance |= {f"{name}_rank": (num_references + 1) / 2 for name in ranked}
    return {
        name: {**pose_figures(pose_errors(answer, truth)), **chance}
        for name, answer in chance_answers(len(truth), reach_m, seed).items()
    }
