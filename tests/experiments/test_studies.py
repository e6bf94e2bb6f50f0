"""The studies that are shipped: each is whole, and has the rows that the paper's tables have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pytest
import yaml

from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.cost import estimate_study
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.plan import plan_study
from brainfoundry.experiments.published import published
from brainfoundry.experiments.spec import load_study, read_study, study_names
from brainfoundry.experiments.study import StudySpec
from brainfoundry.training.finetune_config import FinetuneConfig
from tests.experiments.cohort_infos import cohorts

FOLDER = resources.files("brainfoundry.experiments") / "studies"


def shipped() -> list[tuple[str, str]]:
    """Every study with every preset of its file."""
    found = []
    for name in study_names():
        presets = yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).get("presets", {})
        found += [(name, preset) for preset in ("", *presets)]
    return found


def plan(name: str, preset: str = "", **options: Any) -> tuple[StudySpec, tuple[Node, ...]]:
    spec = load_study(name, preset)
    return spec, plan_study(spec, cohorts(), "/runs", **options)


def trials(nodes: tuple[Node, ...], **where: Any) -> list[Node]:
    """Trials with these values on these axes."""
    return [n for n in nodes if n.role == "trial" and all(n.point[a] == v for a, v in where.items())]


def test_which_are_shipped() -> None:
    assert {"table4", "table5", "table6", "table8", "table9", "fig4", "objectives", "demo"} <= set(
        study_names()
    )


@pytest.mark.parametrize(("name", "preset"), shipped())
def test_each_can_be_planned(name: str, preset: str) -> None:
    spec, nodes = plan(name, preset)
    assert spec.name.startswith(name) and spec.title != spec.name
    assert read_study(spec.to_dict()) == spec
    assert len([node for node in nodes if node.role == "trial"]) == len(spec.points())
    assert estimate_study(nodes, {}).text(devices=(8, 64))
    for node in nodes:
        if node.role == "ancestor" and spec.finetune is not None:
            assert node.config.data.guard, "an ancestor that no leak gate looks at"


@pytest.mark.parametrize("name", study_names())
def test_each_says_where_its_values_come_from(name: str) -> None:
    head = (FOLDER / f"{name}.yaml").read_text().split("version:")[0]
    assert "# Values: " in head and "cohort" in head


@pytest.mark.parametrize("number", [4, 5, 6, 8, 9])
def test_every_published_column_has_its_trials(number: int) -> None:
    _, nodes = plan(f"table{number}")
    for cell in published(number):
        axes: Mapping[str, Any] = {axis: v for axis, v in cell.axes.items() if axis not in ("fold", "draw")}
        if axes:
            assert trials(nodes, **axes), cell


def test_table4_has_the_baselines_in_the_same_harness() -> None:
    _, nodes = plan("table4")
    assert Counter(node.point["fold"] for node in trials(nodes)) == dict.fromkeys(range(5), 14)
    same = set()
    for node in trials(nodes):
        assert isinstance(node.config, FinetuneConfig)
        config = node.config
        same.add((config.data.crop, config.data.seed, config.optim, config.augment, config.task, config.keep))
    assert len(same) == 1
    external = {node.point["family"] for node in trials(nodes) if node.kind == "external"}
    assert external == {"nnunetv2", "bundle", "swinunetr"}  # the last from CT weights, which nobody named
    _, with_ct = plan("table4", weights={"ct": "model_swinvit.pt"})
    (ct,) = trials(with_ct, init="ct", fold=0)
    assert (ct.kind, ct.config.model.merging, ct.config.model.size) == ("finetune", "legacy", "tiny")
    resident = next(node for node in nodes if node.id.startswith("resident-tiny-fold3"))
    assert (resident.config.data.modalities, resident.config.data.fold) == (("T1w", "T2w"), 3)


def test_table5_trains_every_stage_on_one_modality() -> None:
    _, nodes = plan("table5")
    for node in nodes:
        data = node.config.data
        fed = {text.partition("=")[0]: text.partition("=")[2] for text in data.feed}
        shown = {fed.get(channel, channel) for channel in data.modalities}
        assert shown in ({"T1w"}, {"FLAIR"}), node.id
    channels = Counter(len(node.config.data.modalities) for node in nodes if node.kind == "pretrain")
    assert channels == {1: 2 + 10, 2: 2 + 10}  # stage 1 of each modality, stage 2 of each and fold


def test_table6_clean_and_as_published() -> None:
    clean, nodes = plan("table6", "clean")
    assert clean == load_study("table6") and not clean.notes
    assert not any(node.config.data.allow_leak for node in nodes)
    (stage2,) = [node for node in nodes if node.id.startswith("stage2")]
    assert (stage2.config.data.shards, stage2.config.data.guard) == (
        "/data/atlas",
        ("/data/atlas#split=test",),
    )
    leaky, published_nodes = plan("table6", "as-published")
    assert leaky.name == "table6-as-published" and "LEAK" in leaky.notes[0]
    (stage2,) = [node for node in published_nodes if node.id.startswith("stage2")]
    assert stage2.config.data.shards == "/data/atlas-all"
    assert stage2.config.data.guard == ("/data/atlas#split=test",)  # it is seen, and recorded
    assert stage2.config.data.allow_leak and all(
        node.config.data.allow_leak for node in trials(published_nodes)
    )


def test_table9_as_the_text_and_as_the_code_have_it() -> None:
    paper, nodes = plan("table9", "paper")
    assert paper == load_study("table9")
    assert len(trials(nodes, init="stage1+2")) == len(trials(nodes, init="scratch")) == 25
    assert {node.config.model.size for node in nodes} == {"small"}
    pretraining = Counter(node.id.split("-")[0] for node in nodes if node.kind == "pretrain")
    assert pretraining == {"stage1": 1, "stage2": 1, "stage2few": 5}
    reference, nodes = plan("table9", "reference")
    assert reference.name == "table9-reference"
    assert [node.id.split("-")[:2] for node in nodes if node.kind == "pretrain"] == [["stage1", "tiny"]]
    assert {node.config.model.merging for node in nodes} == {"legacy"}


def test_fig4_is_pretraining_alone() -> None:
    _, nodes = plan("fig4")
    assert [(node.kind, node.config.model.size) for node in nodes] == [
        ("pretrain", "tiny"), ("pretrain", "small"), ("pretrain", "big"),
    ]  # fmt: skip


def test_studies_share_what_is_the_same() -> None:
    nodes = [node for name in ("table4", "table9", "objectives", "fig4") for node in plan(name)[1]]
    assert len({node.id for node in nodes if node.id.rpartition("-")[0] == "stage1-small"}) == 1


def test_the_demo_is_small_and_can_be_wide() -> None:
    _, smallest = plan("demo", "smallest")
    assert len(smallest) == 3 and all(node.config.optim.steps <= 4 for node in smallest)
    _, wide = plan("demo", "wide")
    assert len(trials(wide)) >= 20
    assert all(node.config.model.size == "nano" for node in wide if node.point["family"] == "swinunetr")
    assert all(node.config.cluster.workers == 1 for node in wide)


def test_a_shipped_study_names_the_cohort_it_lacks() -> None:
    there = {name: info for name, info in cohorts().items() if name != "atlas_all"}
    with pytest.raises(ConfigError, match="study table6-as-published needs cohort atlas_all"):
        plan_study(load_study("table6", "as-published"), there, "/runs")
