from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciper.config import from_dict, load_config, to_dict
from ciper.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr = {self.lr}: expected a positive number.")


@dataclass(frozen=True)
class Settings:
    name: str = "base"
    is_mixed: bool = True
    width: int = 64
    device: Literal["cpu", "cuda"] = "cpu"
    limit: float | None = None
    seeds: tuple[int, ...] = (1, 2)
    out: Path = Path("runs")
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True)
class Needy:
    rasters: tuple[str, ...]


def test_defaults_need_no_file() -> None:
    assert load_config(Settings) == Settings()


def test_a_file_and_overrides_the_last_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('name = "city"\nseeds = [5]\n[optimizer]\nlr = 1\nbetas = [0.5, 0.75]\n')
    config = load_config(Settings, path, ["width=8", "width = 16", "optimizer.warmup_steps=0"])
    assert config == Settings(
        name="city", width=16, seeds=(5,), optimizer=Optimizer(1.0, (0.5, 0.75), 0)
    )
    assert isinstance(config.optimizer.lr, float)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=7", "name", "7"),
        ("name=a=b", "name", "a=b"),
        ('name="quoted"', "name", "quoted"),
        ("name=none", "name", "none"),
        ("device=cuda", "device", "cuda"),
        ("limit=3e-4", "limit", 3e-4),
        ("limit=2", "limit", 2.0),
        ("limit=none", "limit", None),
        ("is_mixed=false", "is_mixed", False),
        ("seeds=[]", "seeds", ()),
        ("out=a/b", "out", Path("a/b")),
    ],
)
def test_override_values_follow_the_type_of_their_field(
    override: str, key: str, value: object
) -> None:
    found = getattr(load_config(Settings, None, [override]), key)
    assert found == value
    assert type(found) is type(value) or isinstance(found, Path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", r"^optimizer\.lrr is not a setting; did you mean optimizer\.lr\?"),
        ("widht=1", r"^widht is not a setting; did you mean width\? Known here: name, is_mixed"),
        ("width=1.5", r"^width = '1\.5': expected an integer\.$"),
        ("width=true", r"^width = 'true': expected an integer\.$"),
        ("is_mixed=1", r"expected true or false"),
        ("limit=fast", r"^limit = 'fast': expected a number or none\.$"),
        ("device=tpu", r"^device = 'tpu': expected one of 'cpu', 'cuda'\.$"),
        ("seeds=3", r"expected a list, each item an integer"),
        ("seeds=[1, 'a']", r"^seeds\[1\] = 'a': expected an integer\.$"),
        ("optimizer.betas=[1, 2, 3]", r"expected 2 values, found 3"),
        ("optimizer=3", r"expected a section with the keys of Optimizer"),
        ("optimizer.lr=-1", r"^optimizer: lr = -1\.0: expected a positive number\.$"),
        ("width", r"^'width' is not a setting; write section\.key=value\.$"),
        ("optimizer..lr=1", r"write section\.key=value"),
        ("width.deep=1", r"expected an integer"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Settings, None, [override])


def test_an_override_below_a_value_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("width = 3\n")
    with pytest.raises(ConfigError, match="width is a value, not a section"):
        load_config(Settings, path, ["width.deep=1"])


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^rasters has no value and no default"):
        from_dict(Needy, {})
    assert from_dict(Needy, {"rasters": ["a.tif"]}) == Needy(("a.tif",))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        load_config(Settings, tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"width = \n")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not valid TOML"):
        load_config(Settings, bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not valid TOML"):
        load_config(Settings, bad)


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        Settings,
        name=st.text(max_size=8),
        is_mixed=st.booleans(),
        width=st.integers(-5, 5),
        device=st.sampled_from(["cpu", "cuda"]),
        limit=st.none() | st.floats(allow_nan=False),
        seeds=st.lists(st.integers(), max_size=3).map(tuple),
        optimizer=st.builds(Optimizer, lr=st.floats(1e-6, 1.0)),
    )
)
def test_to_dict_and_json_and_back(config: Any) -> None:
    assert from_dict(Settings, json.loads(json.dumps(to_dict(config)))) == config
