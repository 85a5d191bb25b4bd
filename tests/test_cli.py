"""The command line itself; what the verbs do is tested with the verbs and end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import ciper
from ciper.camera import Camera
from ciper.cli import app
from ciper.cli.options import numbers, one_form, picture_paths
from ciper.cli.screen import Progress
from ciper.errors import ConfigError, OutputError, PhotoError

VERBS = ("simulate", "index", "localize", "evaluate", "train")
HEAVY = ("torch", "numpy", "scipy", "numba", "rasterio", "faiss", "geopandas", "PIL", "matplotlib")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def fake_simulate(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the verb: remembers its call, and raises what it is told to."""
    seen: dict[str, Any] = {"raises": None}

    def simulate(out: Path, config: Any, *, progress: Progress) -> SimpleNamespace:
        seen.update(out=out, config=config)
        progress("photos", 1, 2)
        if seen["raises"] is not None:
            raise seen["raises"]
        return SimpleNamespace(num_photos=4, poses=out / "poses.csv")

    module = ModuleType("ciper.simulate")
    vars(module).update(simulate=simulate, SimulateConfig=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "ciper.simulate", module)
    return seen


@pytest.mark.parametrize("arguments", ["--help", "--version", "index --help", "localize --help"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys; from ciper.cli import app\n"
        f"try: app({arguments.split()!r})\n"
        "except SystemExit: pass\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.rpartition("MODULES")[2].split())
    assert "typer" in modules
    assert modules.isdisjoint(HEAVY)
    # A budget on modules does not depend on what else the machine is doing; 0.1 ms to 1 ms each.
    assert len(modules) < 500


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, ciper, ciper.errors, ciper.config; print('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_python_m_ciper_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ciper", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ciper {ciper.__version__}\n"


def test_public_names_are_listed_and_others_are_refused() -> None:
    assert {"Localizer", "Pose", "Posterior", "load_model", "__version__"} <= set(dir(ciper))
    assert ciper.Pose(lat=1.0, lon=2.0, heading_deg=-90.0).heading_deg == 270.0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ciper.nothing


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_device_threads_and_seed(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    for option in ("--device", "--threads", "--seed"):
        assert option in result.stdout


def test_options_reach_the_verb(fake_simulate: dict[str, Any], tmp_path: Path) -> None:
    result = run("simulate", str(tmp_path), "--seed", "3", "--size-m", "250", "--num-photos", "4")
    assert result.exit_code == 0
    assert fake_simulate["out"] == tmp_path
    expected = {"seed": 3, "size_m": 250.0, "num_photos": 4, "camera": "panorama"}
    assert expected.items() <= fake_simulate["config"].items()
    assert result.stdout == ""


def test_a_named_error_is_one_line_on_stderr(fake_simulate: dict[str, Any]) -> None:
    fake_simulate["raises"] = OutputError("out: is taken;\n  name another place.")
    result = run("simulate", "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "error: out: is taken; name another place."


@pytest.mark.usefixtures("fake_localize")
def test_an_error_before_any_progress_is_the_only_line() -> None:
    result = run("localize", "a.jpg", "--gallery", "g", "--near", "60,25")
    assert result.exit_code == 2
    assert result.stderr == "error: --near '60,25': expected numbers as LAT,LON,RADIUS_M.\n"


def test_an_interruption_is_one_line_and_130(fake_simulate: dict[str, Any]) -> None:
    fake_simulate["raises"] = KeyboardInterrupt()
    result = run("simulate", "out")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted; nothing that was finished is lost"


def test_a_mistake_in_the_program_is_not_dressed_up(fake_simulate: dict[str, Any]) -> None:
    fake_simulate["raises"] = ZeroDivisionError("bug")
    result = run("simulate", "out")
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments", [["fly"], ["simulate"], ["simulate", "out", "--num-photos", "many"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


def test_an_unknown_device_is_named(fake_simulate: dict[str, Any]) -> None:
    result = run("simulate", "out", "--device", "gpu")
    assert result.exit_code == 2
    assert "device 'gpu' is unknown; expected one of cpu, cuda, mps" in result.stderr
    assert "config" not in fake_simulate


def test_numbers_of_an_option() -> None:
    near = numbers("-33.8, 151.2,150", "LAT,LON,RADIUS_M", option="--near")
    assert near == (-33.8, 151.2, 150.0)
    assert numbers(None, "DEG", option="--x") is None
    for text in ("1,2", "1,2,3,4", "a,b,c", "", "1,,2"):
        with pytest.raises(ConfigError, match=r"^--near '.*': expected numbers as LAT,LON,RADIUS"):
            numbers(text, "LAT,LON,RADIUS_M", option="--near")


def test_one_form_of_output() -> None:
    assert one_form(json=False, geojson=False, csv=False) == "text"
    assert one_form(json=False, geojson=True, csv=False) == "geojson"
    result = run("localize", "a.jpg", "--gallery", "g", "--json", "--csv")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: --json and --csv: expected one form of output; leave one out.\n"
    )


def test_several_photos_have_several_pictures() -> None:
    out, photo, other = Path("pictures/out.png"), Path("photos/0007.jpg"), Path("more/0007.jpg")
    assert picture_paths(out, [photo]) == {photo: out}
    assert picture_paths(out, [photo, other]) == {
        photo: Path("pictures/out-0007.png"),
        other: Path("pictures/out-0007-2.png"),
    }
    assert picture_paths(None, [photo, other]) == {}
    with pytest.raises(ConfigError, match=r"^--picture out\.jpg: expected .* ends in \.png"):
        picture_paths(Path("out.jpg"), [photo])


@pytest.fixture
def fake_localize(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the verb that cannot read photos whose name says so."""

    class Localizer:
        gallery = SimpleNamespace(chips=None)
        model = SimpleNamespace(limits=(), misfit=lambda _: None)

        def __init__(self, *_: object) -> None:
            pass

        def localize(self, photo: Path, **_: object) -> SimpleNamespace:
            if "bad" in photo.name:
                raise PhotoError(f"{photo}: is not an image.")
            if "stop" in photo.name:
                raise KeyboardInterrupt
            metadata = SimpleNamespace(problems=("EXIF direction 'x' is no\nnumber",))
            camera = Camera("pinhole", 3, 4, hfov_deg=75.0, is_assumed=True)
            return SimpleNamespace(photo=photo, metadata=metadata, camera=camera)

    def answer_of(found: SimpleNamespace, *_: object, **__: object) -> dict[str, object]:
        return {"photo": str(found.photo), "lat": 1.5, "lon": -2.0, "camera": "assumed"}

    module = ModuleType("ciper.localize")
    vars(module).update(Localizer=Localizer)
    monkeypatch.setitem(sys.modules, "ciper.localize", module)
    monkeypatch.setattr("ciper.answers.answer_of", answer_of)


@pytest.mark.usefixtures("fake_localize")
def test_a_bad_photo_does_not_cost_the_other_answers() -> None:
    result = run("localize", "a.jpg", "bad.jpg", "c.jpg", "--gallery", "g", "--json")
    assert result.exit_code == 2
    assert [answer["photo"] for answer in json.loads(result.stdout)] == ["a.jpg", "c.jpg"]
    assert result.stderr.splitlines()[-1] == "error: bad.jpg: is not an image."


@pytest.mark.usefixtures("fake_localize")
def test_an_interruption_does_not_cost_the_answers_before_it() -> None:
    result = run("localize", "a.jpg", "stop.jpg", "c.jpg", "--gallery", "g", "--json")
    assert result.exit_code == 130
    assert [answer["photo"] for answer in json.loads(result.stdout)] == ["a.jpg"]
    assert result.stderr.splitlines()[-1].startswith("interrupted")
    assert run("localize", "stop.jpg", "--gallery", "g", "--json").stdout == ""


@pytest.mark.usefixtures("fake_localize")
def test_a_picture_that_cannot_be_written_does_not_cost_the_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer_picture(*_: object, **__: object) -> None:
        raise OutputError("out-a.png: cannot be written.")

    picture, preprocess = ModuleType("ciper.picture"), ModuleType("ciper.data.preprocess")
    vars(picture).update(answer_picture=answer_picture)
    vars(preprocess).update(read_photo=lambda photo: photo)
    monkeypatch.setitem(sys.modules, "ciper.picture", picture)
    monkeypatch.setitem(sys.modules, "ciper.data.preprocess", preprocess)
    arguments = ("a.jpg", "b.jpg", "--gallery", "g", "--json", "--picture", "out.png")
    result = run("localize", *arguments)
    assert result.exit_code == 2
    assert [answer["photo"] for answer in json.loads(result.stdout)] == ["a.jpg"]
    assert result.stderr.splitlines()[-1] == "error: out-a.png: cannot be written."


@pytest.mark.usefixtures("fake_localize")
def test_answers_alone_are_on_stdout() -> None:
    result = run("localize", "a.jpg", "--gallery", "g", "--csv", "--threads", "1")
    assert result.exit_code == 0
    assert result.stdout == "photo,lat,lon,camera\na.jpg,1.5,-2.0,assumed\n"
    assert "1 of 1 photos do not tell their field of view" in result.stderr


@pytest.mark.usefixtures("fake_localize")
def test_what_metadata_leave_open_is_said_once() -> None:
    result = run("localize", "a.jpg", "b.jpg", "--gallery", "g", "--csv")
    assert result.exit_code == 0
    assert result.stderr.count("EXIF direction") == 1
    assert "warning: EXIF direction 'x' is no number (2 photos)" in result.stderr
