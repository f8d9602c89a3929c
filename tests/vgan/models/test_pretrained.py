"""Model files: equal clips after saving and loading in another process, and errors for invalid files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vgan
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.gaussian_mixture import LatentMixture
from vgan.models.pretrained import write_weights
from vgan.video.normalize import normalize_clips

SMALL = {"base_width": 2, "z_size": 5, "num_frames": 16, "size": 32}
MODELS = {
    kind: ModelConfig(architecture=kind, **SMALL) for kind in ("two_stream", "one_stream", "future", "autoencoder")
}
MIXTURE = LatentMixture(
    weights=np.float32([0.5, 0.5]),
    means=np.float32([[3.0] * 5, [-3.0] * 5]),
    reaches=np.ones((2, 5), np.float32),
    axes=np.eye(5, dtype=np.float32),
)


def make(config: ModelConfig, seed: int = 0) -> dict[str, nn.Module]:
    """Create networks with weights and batch statistics far from the initial ones."""
    torch.manual_seed(seed)
    networks = make_networks(config)
    for network in networks.values():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.3 * torch.randn_like(tensor))
    return networks


def export(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    vgan.save(folder, config, make(config, seed), MIXTURE if config.architecture == "autoencoder" else None)
    return folder


def checkpoint(folder: Path, config: ModelConfig) -> Path:
    """Write a checkpoint in which generator and moving average differ."""
    networks = make(config, seed=0)
    write_weights(folder / "weights", networks | {"generator_ema": make(config, seed=1)["generator"]})
    (folder / "state.json").write_text(json.dumps({"step": 3, "model": asdict(config)}))
    return folder


def test_importing_the_package_costs_nothing_heavy() -> None:
    code = "import vgan, sys; print(sorted({'torch', 'numpy', 'cv2', 'sklearn'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = vgan.nonsense


@pytest.mark.parametrize("kind", ["two_stream", "one_stream", "autoencoder"])
def test_fresh_process_draws_the_same_bits(tmp_path: Path, kind: str) -> None:
    folder = export(tmp_path / "model", MODELS[kind])
    here = vgan.load(folder).sample(3, seed=5)
    code = f"""
import numpy as np, vgan
clips = vgan.load({str(folder)!r}).sample(3, seed=5)
np.savez({str(tmp_path / "there.npz")!r}, **{{k: v for k, v in clips._asdict().items() if v is not None}})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    there = np.load(tmp_path / "there.npz")
    expected = {name: stream for name, stream in here._asdict().items() if stream is not None}
    assert set(there) == set(expected)
    assert all(np.array_equal(there[name], stream) for name, stream in expected.items())
    assert len({clip.tobytes() for clip in here.video}) == 3


def test_load_gives_back_every_tensor_and_setting(tmp_path: Path) -> None:
    for kind, config in MODELS.items():
        networks = make(config)
        vgan.save(tmp_path / kind, config, networks)
        model = vgan.load(tmp_path / kind)
        assert model.config == config
        for name, network in networks.items():
            result = getattr(model, name)
            assert not result.training
            assert all(torch.equal(v, result.state_dict()[k]) for k, v in network.state_dict().items())
    assert model.discriminator is None  # an autoencoder has none


def test_sample_is_composed_of_its_streams(tmp_path: Path) -> None:
    clips = vgan.load(export(tmp_path, MODELS["two_stream"])).sample(17)  # more than one batch
    assert clips.video.shape == clips.foreground.shape == (17, 16, 32, 32, 3)
    assert clips.background.shape == (17, 1, 32, 32, 3)
    assert clips.mask.shape == (17, 16, 32, 32)
    assert clips.video.dtype == clips.foreground.dtype == clips.background.dtype == np.uint8
    assert 0 <= clips.mask.min() < 0.4 < 0.6 < clips.mask.max() <= 1
    mask = clips.mask[..., None]
    composed = mask * clips.foreground + (1 - mask) * clips.background
    np.testing.assert_allclose(composed, clips.video, atol=1.01)  # three roundings to whole levels


def test_sample_of_one_stream_is_the_video_alone(tmp_path: Path) -> None:
    clips = vgan.load(export(tmp_path, MODELS["one_stream"])).sample(2)
    assert clips.video.shape == (2, 16, 32, 32, 3)
    assert clips.foreground is clips.mask is clips.background is None


def test_sample_depends_on_the_seed_and_not_on_the_batch_around_a_clip(tmp_path: Path) -> None:
    model = vgan.load(export(tmp_path, MODELS["two_stream"]))
    codes = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    full, alone = model.decode(codes).video, model.decode(codes[18:19]).video
    assert np.abs(full[18].astype(int) - alone[0]).max() <= 1  # in train mode the result would depend on the batch
    assert not np.array_equal(model.sample(1, seed=1).video, model.sample(1, seed=2).video)


def test_checkpoint_draws_from_the_moving_average_unless_told_not_to(tmp_path: Path) -> None:
    config = MODELS["two_stream"]
    folder = checkpoint(tmp_path / "step_3", config)
    raw, average = (make(config, seed)["generator"].state_dict() for seed in (0, 1))
    for model, expected in ((vgan.load(folder), average), (vgan.load(folder, ema=False), raw)):
        assert all(torch.equal(v, expected[k]) for k, v in model.generator.state_dict().items())
        assert model.discriminator is not None


def test_predict_reduces_by_the_short_side_and_crops_the_centre(tmp_path: Path) -> None:
    model = vgan.load(export(tmp_path, MODELS["future"]))
    rng = np.random.default_rng(0)
    square = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    large = square.repeat(8, 1).repeat(8, 2)  # 256 x 256
    wide = np.pad(large, ((0, 0), (0, 0), (50, 50), (0, 0)))
    tall = np.pad(large, ((0, 0), (90, 90), (0, 0), (0, 0)), constant_values=255)
    given = normalize_clips(torch.from_numpy(square)[:, None])[:, :, 0]
    with torch.no_grad():
        expected = model.generator(given).video
    for images in (square, large, wide, tall):
        clips = model.predict(images)
        assert clips.mask.shape == (2, 16, 32, 32)
        drawn = normalize_clips(torch.from_numpy(clips.video))
        torch.testing.assert_close(drawn, expected, atol=1.01 / 127.5, rtol=0)
    assert model.predict(square[:, :9, :7]).video.shape == (2, 16, 32, 32, 3)  # smaller than a clip


def test_autoencoder_encodes_and_decodes_as_its_network_does(tmp_path: Path) -> None:
    model = vgan.load(export(tmp_path, MODELS["autoencoder"]))
    frames = np.random.default_rng(0).integers(0, 256, (18, 16, 32, 32, 3), np.uint8)
    codes = model.encode(frames)
    assert (codes.shape, codes.dtype) == ((18, 5), np.float32)
    with torch.no_grad():
        expected = model.generator(normalize_clips(torch.from_numpy(frames))).video
    drawn = normalize_clips(torch.from_numpy(model.decode(codes).video))
    torch.testing.assert_close(drawn, expected, atol=1.01 / 127.5, rtol=0)


def test_models_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    models = {kind: vgan.load(export(tmp_path / kind, config)) for kind, config in MODELS.items()}
    image, clip = np.zeros((1, 40, 50, 3), np.uint8), np.zeros((1, 16, 32, 32, 3), np.uint8)
    code = np.zeros((1, 5), np.float32)
    with pytest.raises(InputError, match="future model generates clips from images: use predict"):
        models["future"].sample(1)
    with pytest.raises(InputError, match="not a one_stream model: use sample"):
        models["one_stream"].predict(image)
    with pytest.raises(InputError, match="only an autoencoder encodes"):
        models["two_stream"].encode(clip)
    with pytest.raises(InputError, match="num must be at least 1, got 0"):
        models["two_stream"].sample(0)
    with pytest.raises(InputError, match=r"images must be \(N, H, W, 3\) uint8, got \(40, 50, 3\)"):
        models["future"].predict(image[0])
    with pytest.raises(InputError, match=r"frames must be \(N, 16, 32, 32, 3\) uint8, got .* float64"):
        models["autoencoder"].encode(clip.astype(float))
    with pytest.raises(InputError, match=r"codes must be \(N, 5\) float32, got \(1, 4\)"):
        models["two_stream"].decode(code[:, :4])
    vgan.save(tmp_path / "bare", MODELS["autoencoder"], make(MODELS["autoencoder"]))
    with pytest.raises(InputError, match="fit_mixture"):
        vgan.load(tmp_path / "bare").sample(1)


# ---- invalid files -----------------------------------------------------------------------------------------------


def test_load_where_there_is_no_model_says_what_to_give(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no model")
    for path in (tmp_path, tmp_path / "nowhere", file):
        with pytest.raises(InputError, match=f"no model at '{path}': give a step_"):
            vgan.load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "does not describe a model"),
        ("[]", "does not describe a model"),
        ('{"model": {"base_width": 2, "depth": 9}}', "cannot create: .*depth"),
        ('{"model": {"size": 50}}', "cannot create: model.size must be 32, 64 or 128, got 50"),
        ('{"model": 3}', "cannot create"),
    ],
)
def test_load_with_broken_settings_names_the_folder(tmp_path: Path, settings: str, message: str) -> None:
    export(tmp_path, MODELS["two_stream"])
    (tmp_path / "model.json").write_text(settings)
    with pytest.raises(InputError, match=message) as caught:
        vgan.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_load_with_weights_of_another_model_names_the_tensor(tmp_path: Path) -> None:
    export(tmp_path, MODELS["two_stream"])
    (tmp_path / "model.json").write_text(json.dumps({"model": SMALL | {"base_width": 4}}))
    with pytest.raises(
        InputError, match=r"generator\.safetensors' does not fit .*background\S+ is 16 in the file, 32 in the network"
    ):
        vgan.load(tmp_path)


def test_load_without_weights_or_with_broken_ones_names_the_file(tmp_path: Path) -> None:
    folder = export(tmp_path, MODELS["one_stream"])
    (folder / "generator.safetensors").write_bytes(pickle.dumps({"weight": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"cannot read weights from .*generator\.safetensors"):
        vgan.load(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match=r"generator\.safetensors is missing"):
        vgan.load(folder)
