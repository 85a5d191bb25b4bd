"""How good is a model on the protocols of the field? VIGOR, KITTI and Ford as they are published.

Every photo is asked which reference of the published gallery shows its place (`retrieval`), where
in its published chip it was taken (`pose`), and where in the whole gallery (`end_to_end`).
`docs/metrics.md` defines the figures. A query whose photo or chip cannot be read is a failure in
each of them, never left out. Nothing is written into the data set's folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper import metrics
from ciper.asking import Progress, batches, mean_descriptor, one_line, without_gaps
from ciper.data.datasets import ProtocolOptions, read_protocol
from ciper.data.protocol import Protocol
from ciper.data.shown import read_shown
from ciper.errors import CameraError, PhotoError
from ciper.files import finished_folder
from ciper.gallery.shards import AerialCodes
from ciper.legacy import strict_greater_ranks
from ciper.model.load import Model, PaperModel, load_model
from ciper.published.answers import SeenPhoto, among, in_chip, without_told_heading
from ciper.published.codes import CHIPS_AT_ONCE, ChipCoder, References, whole
from ciper.published.figures import Asked, SampleQuery, figures_of, queries_of
from ciper.published.report import write_published_report
from ciper.report import check_replaceable, write_metrics

# A photo is matched with so many of its most similar references.
NUM_CANDIDATES = 10


@dataclass(frozen=True)
class PublishedRun:
    """What is to be measured.

    Attributes:
        spec: the data set and its folder, see `data.datasets.parse_spec`.
        options: which of its queries, and how they are shown.
        model: name or file of weights, or a model.
        device: cpu, cuda or mps.
        seed: of the baselines.
    """

    spec: str
    options: ProtocolOptions
    model: str | Path | Model = "ground"
    device: str | None = None
    seed: int = 0


def evaluate_published(run: PublishedRun, out: Path, progress: Progress) -> dict[str, Any]:
    """Measure a model on a published protocol and write a report.

    Args:
        run: what is to be measured.
        out: the report's folder; a report that is there already is replaced.
        progress: called with (what, done, total).

    Returns:
        What metrics.json holds.

    Raises:
        ConfigError, DatasetError: the protocol cannot be read, or no reference of it.
        OutputError: `out` holds something else or cannot be written.
        CheckpointError: the weights cannot be used.
    """
    check_replaceable(out)
    protocol = read_protocol(run.spec, run.options)
    made = run.model
    model = made if isinstance(made, Model) else load_model(made, run.device)
    with finished_folder(out) as folder:
        return measure(protocol, model, folder, run=run, progress=progress)


def measure(
    protocol: Protocol, model: Model, folder: Path, *, run: PublishedRun, progress: Progress
) -> dict[str, Any]:
    """Ask all queries of a protocol and write the report into a folder that is there.

    Returns:
        What metrics.json holds.

    Raises:
        DatasetError: not one reference can be read.
    """
    started = time.perf_counter()
    asking = Asking(model, protocol)
    queries = asking.ask(progress)
    asked = Asked(protocol, run.seed, model.is_metric, model.calibration.is_fitted)
    figures = {
        "spec": run.spec,
        "dataset": protocol.dataset,
        "settings": dict(protocol.settings),
        "model": model.model_name,
        "model_hash": model.model_hash,
        "seed": run.seed,
        "num_candidates": NUM_CANDIDATES,
        **figures_of(queries, asked),
        "warnings": [*asking.warnings(queries), *warnings_of_training(model, run.options)],
        "seconds": time.perf_counter() - started,
    }
    figures = write_metrics(folder, figures)
    write_published_report(folder, queries, figures, asked, progress)
    return figures


def warnings_of_training(model: Model, options: ProtocolOptions) -> list[str]:
    """Whether the authors' weights meet the chips that they were trained on."""
    if not isinstance(model, PaperModel) or model.origin is None:
        return []
    is_turned = model.origin.dataset != "vigor" and model.origin.heading_range_deg < 180
    if is_turned and options.reading != "ciper":
        return [
            f"the model {model.model_name!r} was trained on chips turned to within "
            f"{model.origin.heading_range_deg:g} deg of the photo's heading, and these chips are "
            "turned otherwise; --protocol ciper turns them so"
        ]
    return []


# ---------------------------------------------------------------------------------------- questions


class Asking:
    """Asks a model the queries of a protocol.

    Args:
        model: that answers.
        protocol: what is asked.
    """

    def __init__(self, model: Model, protocol: Protocol) -> None:
        self.model = model
        self.protocol = protocol
        self.coder = ChipCoder(model)
        self.references: References | None = None
        self._descriptors: dict[int, NDArray[np.float32]] = {}
        self._own_places: dict[int, NDArray[np.float16]] = {}

    def ask(self, progress: Progress) -> list[SampleQuery]:
        """All queries with their answers.

        Raises:
            DatasetError: not one reference can be read.
        """
        queries = queries_of(self.protocol)
        if self.protocol.has_gallery:
            self.references = References.encode(self.coder, self.protocol.references, progress)
        # Neighbours one after the other: they share references, whose codes are then still there.
        order = np.argsort([query.true_chip for query in queries], kind="stable").tolist()
        for part in batches(len(order), CHIPS_AT_ONCE):
            self._ask_some({order[i]: queries[order[i]] for i in part})
            progress("queries", part.stop, len(order))
        self._rank(queries)
        return queries

    def _ask_some(self, queries: Mapping[int, SampleQuery]) -> None:
        own = self.coder.codes([(q.sample.image, q.sample.cut) for q in queries.values()])
        photos: dict[int, SeenPhoto] = {}
        for (number, query), codes in zip(queries.items(), own, strict=True):
            photo = self._read(query)
            if isinstance(codes, str):
                query.problem = query.problem or codes
                continue
            if self.references is None:
                self._own_places[number] = without_gaps(codes.descriptors)[0]
            if photo is not None:
                photos[number] = photo
                self._descriptors[number] = photo.descriptor
                self._ask_in_chip(query, photo, codes)
        self._ask_everywhere(queries, photos)

    def _ask_in_chip(self, query: SampleQuery, photo: SeenPhoto, codes: AerialCodes) -> None:
        told = query.sample.told if self.model.is_metric else None
        found = in_chip(self.model, query.sample, photo, codes, told)
        query.in_chip = without_told_heading(found, query.sample.told)
        if told is not None:
            query.untold = in_chip(self.model, query.sample, photo, codes, None)

    def _ask_everywhere(
        self, queries: Mapping[int, SampleQuery], photos: Mapping[int, SeenPhoto]
    ) -> None:
        if self.references is None or not photos:
            return
        descriptors = np.stack([photo.descriptor for photo in photos.values()])
        candidates = self.references.most_similar(descriptors, NUM_CANDIDATES)
        for (number, photo), numbers in zip(photos.items(), candidates, strict=True):
            query = queries[number]
            started = time.perf_counter()
            images = [self.references.images[i] for i in numbers[numbers >= 0].tolist()]
            codes = self.coder.codes([(image, whole(image)) for image in images])
            there = [(i, c) for i, c in zip(images, codes, strict=True) if not isinstance(c, str)]
            if there:
                found = among(self.model, query, photo, there)
                seconds = photo.seconds + time.perf_counter() - started
                found = replace(found, seconds=seconds)
                query.whole = without_told_heading(found, query.sample.told)

    def _read(self, query: SampleQuery) -> SeenPhoto | None:
        sample, started = query.sample, time.perf_counter()
        try:
            pixels, camera, _ = read_shown(sample)
        except (PhotoError, CameraError) as error:
            query.problem = one_line(error)
            return None
        query.misfit = self.model.misfit(camera) or ""
        # A model that wants north would undo the turn that is the test.
        is_told = sample.told.heading_within_deg == 0.0
        heading_deg = sample.heading_deg if is_told else None
        code = self.model.encode_photo(pixels, camera, heading_deg=heading_deg)
        return SeenPhoto(code, mean_descriptor(code), time.perf_counter() - started)

    # ---------------------------------------------------------------------------------------- ranks

    def _rank(self, queries: Sequence[SampleQuery]) -> None:
        """Ranks of the true references by descriptor."""
        asked = sorted(self._descriptors)
        if not asked:
            return
        descriptors = np.stack([self._descriptors[i] for i in asked])
        true = np.array([queries[i].true_chip for i in asked], dtype=np.int64)
        references, is_read = self._all_descriptors(len(queries))
        of_all = self.protocol.semi_positives or (np.empty(0, np.int64),) * len(queries)
        semi_positives = [of_all[i] for i in asked]
        if not is_read.all():
            references, true, semi_positives = _without(~is_read, references, true, semi_positives)
        all_ranks, hit_ranks = metrics.ranks_and_hit_ranks(
            descriptors, references, true, semi_positives=semi_positives
        )
        for number, *found in zip(asked, all_ranks, hit_ranks, strict=True):
            queries[number].rank, queries[number].hit_rank = map(int, found)
        if references.shape[1] == 1:
            legacy_ranks = strict_greater_ranks(descriptors, references, true)
            for number, rank in zip(asked, legacy_ranks.tolist(), strict=True):
                queries[number].legacy_rank = rank

    def _all_descriptors(self, num_queries: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """`(R, L, D)` of the gallery, or of every query's own chip, and `(R,)` which were read."""
        if self.references is not None:
            return self.references.descriptors, self.references.is_read
        shape = next(iter(self._own_places.values())).shape
        places = np.full((num_queries, *shape), np.nan, np.float16)
        is_read = np.zeros(num_queries, np.bool_)
        for number, own in self._own_places.items():
            places[number], is_read[number] = own, True
        return places, is_read

    # ------------------------------------------------------------------------------------- warnings

    def warnings(self, queries: Sequence[SampleQuery]) -> list[str]:
        """What whoever reads the figures must know."""
        num, found = len(queries), [*self.protocol.notes, *self.model.limits]
        if not self.protocol.has_gallery:
            found.append(
                "retrieval_per_query_chips: every reference is cut about a query's true pose, "
                "which it thereby gives away; --protocol grid asks among chips that do not know it"
            )
        outside = sum(query.true_chip < 0 for query in queries)
        if outside:
            found.append(f"{outside} of {num} queries have no reference; they count as failures")
        problems = [query.problem for query in queries if query.problem]
        if problems:
            found.append(
                f"{len(problems)} of {num} photos or their chips cannot be read and count as "
                f"failures; the first: {problems[0]}"
            )
        if self.references is not None and self.references.problems:
            found.append(
                f"{len(self.references.problems)} of {len(self.references.images)} references "
                "cannot be read: they do not compete, and whose place they show fails; the first: "
                f"{self.references.problems[0]}"
            )
        if self.coder.reader.resized:
            found.append(
                f"{len(self.coder.reader.resized)} aerial images are not of the published size; "
                f"they are taken to show the same square: {min(self.coder.reader.resized)}"
            )
        if any(query.sample.told.heading_within_deg == 0.0 for query in queries):
            found.append("the protocol tells the headings; pose and end_to_end leave them out")
        misfits = [query.misfit for query in queries if query.misfit]
        if misfits:
            found.append(f"{len(misfits)} of {num} photos: {misfits[0]}")
        return found


def _without(
    is_left_out: NDArray[np.bool_],
    references: NDArray[np.float16],
    true: NDArray[np.int64],
    semi_positives: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.float16], NDArray[np.int64], list[NDArray[np.int64]]]:
    """A gallery without some references, and where those that stay are in it: -1 for none.

    A file that cannot be read is no answer of the model: as a tie with everything it would take
    the first rank from every query.
    """
    number = np.where(is_left_out, -1, np.cumsum(~is_left_out) - 1)
    kept = [number[semi] for semi in semi_positives]
    true = np.where(true < 0, -1, number[true])
    return references[~is_left_out], true, [numbers[numbers >= 0] for numbers in kept]
