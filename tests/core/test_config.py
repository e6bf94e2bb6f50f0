"""Configuration: layers override each other in order, and every mistake is one clear line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from brainfoundry.core.config import parse, to_dict, to_yaml
from brainfoundry.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-4
    """Learning rate."""
    schedule: Literal["cosine", "none"] = "cosine"
    """Schedule."""


@dataclass(frozen=True, kw_only=True)
class Config:
    crop: tuple[int, int, int] = (96, 96, 96)
    """Crop in voxels."""
    modalities: tuple[str, ...] = ("T1w",)
    """Channels."""
    name: str | None = None
    """Name."""
    dry_run: bool = False
    """Only print."""
    optim: Optim = field(default_factory=Optim)
    """Optimiser."""


PRESETS = {"demo": Config(), "paper": Config(optim=Optim(lr=6e-6))}


def read(*argv: str) -> Config:
    return parse(Config, argv, presets=PRESETS, default_preset="demo")


def test_layers_override_in_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("crop: [32, 32, 32]\ndry_run: true\noptim: {lr: 3.0e-3}\n")
    assert read().optim.lr == 1e-4
    assert read("--preset", "paper").optim.lr == 6e-6
    from_file = read("--preset", "paper", "--config", str(file))
    assert (from_file.optim.lr, from_file.crop, from_file.dry_run) == (3e-3, (32, 32, 32), True)
    both = read("--config", str(file), "--optim.lr", "1", "--no-dry-run", "--modalities", "T1w", "FLAIR")
    assert (both.optim.lr, both.dry_run, both.modalities) == (1.0, False, ("T1w", "FLAIR"))


@dataclass(frozen=True, kw_only=True)
class Named:
    study: str = "demo"
    """Study."""
    preset: str = ""
    """One of the study's own."""


def test_without_presets_preset_is_an_option_like_any_other() -> None:
    assert parse(Named, ("--preset", "wide"), default=Named(study="mine")) == Named(
        study="mine", preset="wide"
    )
    assert parse(Named, ()) == Named()
    with pytest.raises(ConfigError, match="unknown preset 'wide'"):
        parse(Optim, ("--preset", "wide"))


def test_short_names_and_commas() -> None:
    aliases = {"--lr": "--optim.lr", "--mods": "--modalities"}

    def short(*argv: str) -> Config:
        return parse(Config, argv, aliases=aliases)

    assert short("--lr", "2", "--mods", "T1w,FLAIR").modalities == ("T1w", "FLAIR")
    assert short("--lr=2", "--mods=T1w,FLAIR", "--crop", "1,2,3").crop == (1, 2, 3)
    assert short("--crop", "1", "2", "3", "--name", "a,b").name == "a,b"  # one value keeps its comma


def test_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = read(
        "--preset", "paper", "--name", "x", "--modalities", "T1w", "FLAIR", "--optim.schedule", "none"
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert read("--config", str(file)) == config
    assert to_dict(config)["optim"]["schedule"] == "none"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--optim.lrr", "1"], ["unknown option --optim.lrr", "did you mean --optim.lr"]),
        (["--optim.lr", "fast"], ["--optim.lr", "'fast'"]),
        (["--optim.schedule", "line"], ["'line'", "cosine"]),
        (["--crop", "3", "4"], ["--crop", "3 values"]),
        (["--preset", "papre"], ["unknown preset", "demo, paper"]),
        (["stray"], ["stray"]),
        (["--config", "/nonexistent.yaml"], ["no such configuration file"]),
    ],
)
def test_a_mistake_is_one_clear_line(argv: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    line = caught.value.line()
    assert "\n" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lrate: 1}", ["unknown field 'optim.lrate'", "did you mean"]),
        ("dry_run: maybe", ["true or false"]),
        ("[1, 2]", ["named fields"]),
        ("a: [", ["cannot read the configuration"]),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read("--config", str(file))
    for word in [*words, str(file)]:
        assert word in caught.value.line()
