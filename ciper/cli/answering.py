"""Many photos: their answers, their pictures, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ciper.cli.screen import note, note_error, progress_bar
from ciper.errors import CameraError, CiperError, PhotoError

if TYPE_CHECKING:
    from ciper.answers import Answer, Form
    from ciper.camera import Camera, CameraOverrides
    from ciper.localize import Localizer
    from ciper.prior import Heading, Near


@dataclass(frozen=True)
class Question:
    """What is asked of every photo.

    Attributes:
        near: where it was taken, if that is known.
        heading: where it looks, if that is known.
        camera: what is known better than its metadata tell.
        num_hypotheses: how many to report.
        pictures: to draw, by photo.
    """

    near: Near | None
    heading: Heading | None
    camera: CameraOverrides
    num_hypotheses: int
    pictures: Mapping[Path, Path]


@dataclass
class Answers:
    """What came of the photos.

    Attributes:
        found: an answer for every photo that has one.
        misread: what is wrong or left open with single photos: by their metadata, or because the
            model knows no such photos.
        limits: what the model's answers cannot tell.
        problems: what was wrong with single photos.
        num_assumed: photos whose field of view was assumed.
        stop: what ended the run early, to be raised when the answers have been printed.
    """

    found: list[Answer] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)
    limits: tuple[str, ...] = ()
    problems: list[CiperError] = field(default_factory=list)
    num_assumed: int = 0
    stop: CiperError | KeyboardInterrupt | None = None


def answer_all(photos: Sequence[Path], localizer: Localizer, question: Question) -> Answers:
    """Answer photo by photo; what goes wrong must not cost the answers that there are."""
    answers = Answers(limits=localizer.model.limits)
    try:
        with progress_bar() as progress:
            for done, photo in enumerate(photos, start=1):
                try:
                    _answer(photo, localizer, question, answers)
                except (PhotoError, CameraError) as error:
                    answers.problems.append(error)
                progress("photos", done, len(photos))
    except (CiperError, KeyboardInterrupt) as error:
        answers.stop = error
    return answers


def _answer(photo: Path, localizer: Localizer, question: Question, answers: Answers) -> None:
    from ciper.answers import answer_of

    found = localizer.localize(
        photo, near=question.near, heading=question.heading, camera=question.camera
    )
    num_hypotheses = question.num_hypotheses
    misfit = localizer.model.misfit(found.camera)
    answers.misread += [*found.metadata.problems, *([misfit] if misfit else [])]
    answers.misread += _on_height(found.camera, question.camera.height_m)
    if found.camera.is_assumed and not _lacks_height(found.camera):
        answers.num_assumed += 1
    answers.found.append(answer_of(found, localizer.gallery.chips, num_hypotheses=num_hypotheses))
    if photo in question.pictures:
        from ciper.data.preprocess import read_photo
        from ciper.picture import answer_picture

        path = question.pictures[photo]
        answer_picture(found, localizer, read_photo(photo), path, top=num_hypotheses)


def _lacks_height(camera: Camera) -> bool:
    return camera.looks_down and camera.height_m is None


def _on_height(camera: Camera, told_m: float | None) -> list[str]:
    """What is to be said of a camera's height above the ground."""
    if _lacks_height(camera):
        return [
            "a photo that looks straight down does not tell its height; 30 to 120 m were averaged "
            "over, --height METRES would make the answer sharper"
        ]
    if told_m is not None and not camera.looks_down:
        return [
            "--height is asked of photos that look straight down, which this one does not (pitch "
            f"{camera.pitch_deg:.0f} deg); if it does, say --pitch -90"
        ]
    return []


def print_answers(answers: Answers, form: Form) -> None:
    """Answers on stdout, all else on stderr; then what stopped the run is raised.

    Raises:
        typer.Exit: a photo has no answer.
    """
    from ciper.answers import format_answers

    if answers.found or answers.stop is None:
        typer.echo(format_answers(answers.found, form), nl=False)
    _note_assumed_cameras(answers.num_assumed, len(answers.found))
    _note_misread(answers.misread)
    for limit in answers.limits if answers.found else ():
        note(f"warning: {limit}")
    for problem in answers.problems:
        note_error(problem)
    if answers.stop is not None:
        raise answers.stop
    if answers.problems:
        raise typer.Exit(2)


def _note_assumed_cameras(num_assumed: int, num_photos: int) -> None:
    if num_assumed:
        note(
            f"note: {num_assumed} of {num_photos} photos do not tell their field of view; "
            "assumed 60 to 90 deg, --hfov DEG would make the answers sharper"
        )


def _note_misread(problems: Sequence[str]) -> None:
    """What is wrong or left open with photos: each kind once."""
    for problem in dict.fromkeys(problems):
        count = problems.count(problem)
        times = f" ({count} photos)" if count > 1 else ""
        note(f"warning: {' '.join(problem.split())}{times}")
