"""The step: accumulation changes nothing, resume is exact to the bit, clipping and precision hold."""

import io

import pytest
import torch

from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.training.checkpoint import to_cpu
from brainfoundry.training.config import InitConfig, OptimConfig
from brainfoundry.training.engine import Engine
from brainfoundry.training.initialise import parameter_groups
from brainfoundry.training.objectives import build_objective
from tests.training.batches import make_batch

CPU = torch.device("cpu")


def make_engine(
    channels: int = 2, options: tuple[str, ...] = (), size: str = "nano", **optim: object
) -> Engine:
    torch.manual_seed(0)
    objective = build_objective("inpaint_rotate_contrast", options)
    network = objective.network(EncoderSpec(size=size, in_channels=channels))
    settings: dict[str, object] = {"steps": 100, "warmup": 2, "lr": 1e-3, "precision": "fp32", **optim}
    return Engine(network, objective, OptimConfig(**settings), "zscore_nonzero", CPU)  # type: ignore[arg-type]


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in engine.bare.state_dict().items()}


def largest_relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(
        float((a[k] - b[k]).abs().max() / (b[k].abs().max() + 1e-12)) for k in a if a[k].is_floating_point()
    )


def test_accumulated_gradients_equal_those_of_the_whole_batch() -> None:
    whole, parts = make_engine(clip_norm=None), make_engine(clip_norm=None, accumulate=2)
    kept: list[list[torch.Tensor]] = []
    records = []
    for engine in (whole, parts):
        kept.append([])
        engine.optimizer.step = lambda *a, into=kept[-1], e=engine: into.extend(  # type: ignore[method-assign]
            p.grad.clone() for p in e.bare.parameters()
        )
        records.append(engine.step(5, make_batch(0)))
    assert torch.allclose(records[0], records[1], rtol=1e-4, atol=1e-6)
    for a, b in zip(*kept, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_stopped_and_resumed_equals_uninterrupted_to_the_bit() -> None:
    straight = make_engine()
    for step in range(4):
        straight.step(step, make_batch(step, 1))

    first = make_engine()
    for step in range(2):
        first.step(step, make_batch(step, 1))
    buffer = io.BytesIO()
    torch.save(to_cpu({"model": first.bare.state_dict(), **first.state()}), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    second = make_engine()
    torch.manual_seed(12345)  # whatever state the new process is in
    second.load(saved.pop("model"), saved, "here")
    for step in range(2, 4):
        second.step(step, make_batch(step, 1))
    expected, got = weights(straight), weights(second)
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_the_loss_falls_and_the_record_is_complete() -> None:
    engine = make_engine(warmup=0)
    records = torch.stack([engine.step(step, make_batch(0, 1)) for step in range(12)])
    assert engine.record_names == (
        "total",
        "rotation",
        "contrast",
        "reconstruction",
        "saturated",
        "grad_norm",
    )
    assert torch.isfinite(records).all()
    assert records[-1, 0] < records[0, 0]
    assert torch.allclose(records[:, 0], records[:, 1:4].sum(1), rtol=1e-4)  # weights 1, 1, 1


def test_loss_weights_are_used() -> None:
    engine = make_engine(options=("rotation_weight=0", "contrast_weight=2"))
    total, rotation, contrast, reconstruction, *_ = engine.step(0, make_batch(0, 1)).tolist()
    assert total == pytest.approx(2 * contrast + reconstruction, rel=1e-4)
    assert rotation > 0


def test_the_first_step_of_the_warm_up_changes_nothing_but_decays_nothing_either() -> None:
    engine = make_engine(warmup=2)
    before = weights(engine)
    engine.step(0, make_batch(0, 1))
    after = weights(engine)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_clipping_bounds_the_gradient_that_is_applied() -> None:
    engine = make_engine(clip_norm=0.01)
    norms = []
    engine.optimizer.step = lambda *a: norms.append(  # type: ignore[method-assign]
        torch.stack([p.grad.norm() for p in engine.bare.parameters()]).norm()
    )
    record = engine.step(0, make_batch(0, 1))
    assert record[-1] > 0.01  # recorded before clipping
    assert float(norms[0]) == pytest.approx(0.01, rel=1e-3)


def test_bf16_stays_close_to_fp32_and_keeps_fp32_weights() -> None:
    exact, half = make_engine(), make_engine(precision="bf16")
    a, b = exact.step(0, make_batch(0, 1)), half.step(0, make_batch(0, 1))
    assert torch.allclose(a[:4], b[:4], rtol=0.05, atol=0.02)
    assert not torch.equal(a, b)
    assert all(p.dtype == torch.float32 for p in half.bare.parameters())


def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fp16 needs a GPU.*fp32"):
        make_engine(precision="fp16")


def test_a_checkpoint_of_other_channels_or_size_is_refused_by_name() -> None:
    engine = make_engine(channels=2)
    other = make_engine(channels=1)
    with pytest.raises(
        CheckpointError, match=r"patch_embed\.proj\.weight.*\(12, 1, 2, 2, 2\).*\(12, 2, 2, 2, 2\)|conv"
    ):
        engine.load(other.bare.state_dict(), other.state(), "step-1")
    bigger = {**engine.bare.state_dict(), "surplus.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"surplus\.weight.*nothing"):
        engine.load(bigger, engine.state(), "step-1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("max_dorp=0.1",), "did you mean max_drop"),
        (("max_drop",), "is not name=value"),
        (("max_drop=much",), "give a value like 0.3"),
        (("temperature=-1",), "temperature"),
    ],
)
def test_objective_options_are_checked(options: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_objective("inpaint_rotate_contrast", options)


def test_an_unknown_objective_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="inpaint_rotate_contrast"):
        build_objective("mae_of_tomorrow")


def test_an_average_is_judged_and_kept_and_resumes_to_the_bit() -> None:
    straight = make_engine(ema=0.5)
    for step in range(4):
        straight.step(step, make_batch(step, 1))
    assert straight.best is not straight.bare
    averaged, learning = straight.best.state_dict(), straight.bare.state_dict()
    assert any(not torch.equal(averaged[k], learning[k]) for k in learning)

    first = make_engine(ema=0.5)
    for step in range(2):
        first.step(step, make_batch(step, 1))
    saved = to_cpu({"model": first.best.state_dict(), **first.state()})
    second = make_engine(ema=0.5)
    second.load(saved.pop("model"), saved, "here")
    for step in range(2, 4):
        second.step(step, make_batch(step, 1))
    for one, other in ((straight.bare, second.bare), (straight.best, second.best)):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_the_average_is_what_its_decay_says() -> None:
    engine = make_engine(ema=0.9, warmup=0)
    name, watched = next(iter(engine.bare.named_parameters()))
    expected = None
    for step in range(3):
        engine.step(step, make_batch(step, 1))
        now = watched.detach().clone()
        expected = now if expected is None else 0.9 * expected + 0.1 * now  # the first counts whole
    assert torch.allclose(dict(engine.best.named_parameters())[name], expected, rtol=1e-5, atol=1e-7)


def test_groups_learn_at_their_own_rate_and_frozen_weights_stay() -> None:
    objective = build_objective("inpaint_rotate_contrast")
    torch.manual_seed(0)
    network = objective.network(EncoderSpec(size="nano", in_channels=2))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    init = InitConfig(freeze="encoder_but_stem", layer_decay=0.5)
    config = OptimConfig(steps=100, warmup=0, lr=1e-3, precision="fp32")
    groups = parameter_groups(network, init, lr=config.lr, weight_decay=0.0)
    engine = Engine(network, objective, config, "zscore_nonzero", CPU, groups)
    engine.step(0, make_batch(0, 1))
    assert [g["lr"] for g in engine.optimizer.param_groups] == [1e-3 * g["lr_scale"] for g in groups]
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(not k.startswith("swinViT.") or ".patch_embed." in k for k in moved)
    assert any(".patch_embed." in k for k in moved)


def test_an_average_cannot_begin_or_end_on_the_way() -> None:
    plain, averaged = make_engine(), make_engine(ema=0.5)
    for first, second, words in (
        (plain, averaged, "without --optim.ema"),
        (averaged, plain, "with --optim.ema"),
    ):
        saved = to_cpu({"model": first.best.state_dict(), **first.state()})
        with pytest.raises(CheckpointError, match=words):
            second.load(saved.pop("model"), saved, "here")
