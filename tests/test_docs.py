"""The pages say what the code does: settings, commands, parameter counts and links."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import typer
from torch import nn

from ciper.cli import app
from ciper.config import load_config
from ciper.model.network import Network, NetworkConfig
from ciper.model.paper import RELEASED, PaperConfig, PaperNetwork
from ciper.train import TrainConfig, make_network

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def settings(cls: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a dataclass and of those inside it, with its default as TOML has it."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kinds = get_args(hints[field.name]) or (hints[field.name],)
        sections = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if not sections or default is None:
            yield f"{place}{field.name}", as_toml(default)
        for section in sections:
            yield from settings(section, f"{place}{field.name}.")


def as_toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def test_every_setting_is_documented_with_its_default() -> None:
    _, reference = (ROOT / "docs/training.md").read_text(encoding="utf-8").split("\n## Reference\n")
    documented: dict[str, str] = {}
    for line in reference.splitlines():
        if line.startswith("| `"):
            names, default, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            assert meaning, line
            documented.update(dict.fromkeys(re.findall(r"`([^`]+)`", names), default.strip("`")))
    assert documented == dict(settings(TrainConfig))


def leaves(command: Any, path: str = "ciper") -> Iterator[tuple[str, Any]]:
    """All commands below a group, by what one types."""
    if not hasattr(command, "commands"):
        yield path, command
    else:
        for name, inner in command.commands.items():
            yield from leaves(inner, f"{path} {name}")


COMMANDS: dict[str, Any] = dict(leaves(typer.main.get_command(app)))


def usages() -> Iterator[tuple[str, str]]:
    """Every `ciper ...` in code blocks and code spans: its page and the line without comment."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        parts = text.split("```")
        lines = [line for block in parts[1::2] for line in block.splitlines()]
        lines += [span for prose in parts[::2] for span in re.findall(r"`([^`\n]+)`", prose)]
        for line in lines:
            found = re.match(r"\s*(?:torchrun .* -m )?(ciper [a-z].*)", line.partition(" #")[0])
            if found:
                yield page.name, found[1]


def test_every_command_is_documented() -> None:
    lines = [line for _, line in usages()]
    missing = [c for c in COMMANDS if not any(line.startswith(c) for line in lines)]
    assert not missing


def test_commands_in_the_pages_exist_with_their_options() -> None:
    found = list(usages())
    assert len(found) > 40
    for page, line in found:
        path = max((c for c in COMMANDS if f"{line} ".startswith(f"{c} ")), key=len, default=None)
        assert path is not None, f"{page}: {line}"
        known = {option for parameter in COMMANDS[path].params for option in parameter.opts}
        asked = set(re.findall(r"(?<=\s)--[a-z0-9-]+", line))
        assert asked <= known | {"--help"}, f"{page}: {line}"


def test_recipes_in_the_pages_can_be_read() -> None:
    lines = [line for _, line in usages() if line.startswith("ciper train configs/")]
    assert len(lines) > 5
    for line in lines:
        file, *words = shlex.split(line.removeprefix("ciper train "))
        load_config(TrainConfig, ROOT / file, [word for word in words if "=" in word])


def with_patches(config: PaperConfig, patch_px: int, *, is_shared: bool) -> PaperConfig:
    return replace(config, vit=replace(config.vit, patch_px=patch_px, is_shared=is_shared))


NETWORKS: dict[str, NetworkConfig | PaperConfig] = {
    "authors' code, patch 32": with_patches(RELEASED, 32, is_shared=False),
    "authors' code, patch 16": with_patches(RELEASED, 16, is_shared=False),
    "paper's text, patch 32 (`paper_kitti`)": with_patches(PaperConfig(), 32, is_shared=True),
    "paper's text, patch 16 (`paper_vigor`)": with_patches(PaperConfig(), 16, is_shared=True),
    "the same with two encoders": with_patches(PaperConfig(), 16, is_shared=False),
    "ours, without refiner": NetworkConfig(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_counts_the_parameters(name: str) -> None:
    config = NETWORKS[name]
    if isinstance(config, NetworkConfig):
        made: nn.Module = Network(config)
    else:
        with torch.device("meta"):
            made = PaperNetwork(config)
    assert f"| {name} | {num_parameters(made)} |" in (ROOT / "docs/network.md").read_text()


@pytest.mark.parametrize("name", ["paper_kitti", "paper_vigor", "paper_small"])
def test_the_page_counts_the_recipes_parameters(name: str) -> None:
    recipe = load_config(TrainConfig, ROOT / f"configs/{name}.toml")
    with torch.device("meta"):
        made = make_network(recipe)
    assert f"(`{name}`) | {num_parameters(made)} |" in (ROOT / "docs/network.md").read_text()


def num_parameters(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()):,}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^):\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", t).lower().replace(" ", "-") for t in titles}
            assert heading in anchors, link
