"""Activation of hidden units: clips, positions and dependence on motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vgan.analysis.hidden_units import (
    LayerProbe,
    activation_masks,
    fade_background,
    make_probe,
    motion_share,
    top_activations,
)
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.layers import encoder_stack
from vgan.models.pretrained import Model

SMALL = {"base_width": 2, "z_size": 5, "num_frames": 16, "size": 32}


def model_of(**more: object) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(**SMALL | more)  # type: ignore[arg-type]
    networks = {name: network.eval() for name, network in make_networks(config).items()}
    return Model(config, networks["generator"], networks.get("discriminator"))


def noise(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 16, 32, 32, 3), np.uint8)


def one_layer(weight: torch.Tensor) -> LayerProbe:
    """Return a probe with one unit of one layer, with this kernel (3, 4, 4, 4)."""
    layers = encoder_stack(3, [3, 1], slope=0.0)
    convolution = layers[0][0]
    with torch.no_grad():
        convolution.weight.copy_(weight[None])
        convolution.bias.zero_()
    return LayerProbe(layers.eval())


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_probe_gives_what_the_discriminators_layers_give(norm: str) -> None:
    model = model_of(discriminator_norm=norm)
    clips = noise(2)
    assert model.discriminator is not None
    real = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        expected = model.discriminator.get_submodule("trunk")[:3](real)
    result = make_probe(model, "discriminator", 3)
    assert (result.num_units, result.field, result.sees_images) == (8, 22, False)
    torch.testing.assert_close(result.maps(clips), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "images"), [("future", True), ("autoencoder", False)])
def test_probe_of_an_encoder_sees_the_first_frame_or_the_clip(kind: str, images: bool) -> None:
    result = make_probe(model_of(architecture=kind), "encoder", 2)
    clips = noise(3)
    maps = result.maps(clips)
    assert result.sees_images == images
    assert maps.shape == (3, 4, 1 if images else 4, 8, 8)
    clips[:, 1:] = 0
    assert torch.equal(result.maps(clips), maps) == images


@pytest.mark.parametrize(
    ("kind", "network", "layer", "message"),
    [
        ("two_stream", "encoder", 1, "network='encoder'"),
        ("autoencoder", "discriminator", 1, "network='discriminator'"),
        ("two_stream", "discriminator", 5, r"layer must be in 1\.\.4"),
        ("two_stream", "discriminator", 0, r"layer must be in 1\.\.4"),
    ],
)
def test_probe_of_what_is_not_there_is_bad_input(kind: str, network: str, layer: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_probe(model_of(architecture=kind), network, layer)


def test_receptive_field_is_what_a_pixel_can_change() -> None:
    """Check by gradients that exactly the pixels in the receptive field affect the middle position."""
    layers = encoder_stack(3, [3, 1, 1, 1], slope=0.2)
    for parameter in layers.parameters():
        nn.init.constant_(parameter, 0.1)
    clip = torch.zeros(1, 3, 32, 32, 32, requires_grad=True)
    LayerProbe(layers.eval()).layers(clip)[0, 0, 2, 2, 2].backward()
    assert clip.grad is not None
    affecting = clip.grad[0, 0, :, 16, 16].nonzero().ravel().tolist()
    center = 8 * 2 + 3.5  # of position 2 in layer 3
    assert affecting == list(range(int(center - 10.5), int(center + 11.5)))  # 22 pixels


def test_top_of_parts_joined_is_that_of_the_whole_with_one_clip_a_video() -> None:
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.standard_normal((40, 3, 2, 2, 2), np.float32))
    rows, videos = np.arange(40), np.array([f"v{i % 7}" for i in range(40)])
    full = top_activations(maps, rows, videos, 5)
    parts = [top_activations(maps[s], rows[s], videos[s], 5) for s in (slice(0, 9), slice(9, 33), slice(33, 40))]
    joined = parts[0].join(parts[1]).join(parts[2])
    peaks = maps.amax(dim=(2, 3, 4)).numpy()
    for unit in range(3):
        best = {v: max(peaks[videos == v, unit]) for v in set(videos)}
        assert full.peaks[unit].tolist() == sorted(best.values(), reverse=True)[:5]
        assert len(set(full.videos[unit])) == 5
        assert peaks[full.rows[unit], unit].tolist() == full.peaks[unit].tolist()
    for key in ("peaks", "rows", "videos"):
        assert np.array_equal(getattr(full, key), getattr(joined, key))
    np.testing.assert_allclose(full.stands_out, joined.stands_out)
    assert (full.stands_out > 1).all()


def test_top_of_fewer_videos_than_asked_is_filled_up_and_counts_what_is_there() -> None:
    maps = torch.arange(6.0).view(6, 1, 1, 1, 1)
    top = top_activations(maps, np.arange(6), np.array(["a", "a", "a", "b", "b", "b"]), 4)
    assert top.peaks.tolist() == [[5.0, 2.0, -np.inf, -np.inf]]
    assert top.rows[0, :2].tolist() == [5, 2]
    assert top.stands_out[0] == pytest.approx((3.5 - 2.5) / np.arange(6).std())


def test_segment_is_centered_where_the_unit_fires() -> None:
    maps = torch.zeros(1, 4, 8, 8)
    maps[0, 1, 2, 5] = 3.0
    masks, frames = activation_masks(maps, (16, 32, 32))  # of layer 2: every position covers 4 pixels
    where = np.argwhere(masks[0])
    assert where.mean(axis=0).tolist() == pytest.approx([1 * 4 + 1.5, 2 * 4 + 1.5, 5 * 4 + 1.5])
    assert frames[0] in (5, 6)
    assert 4**3 / 2 <= len(where) <= 8**3


def test_faded_keeps_what_is_in_the_mask_alone() -> None:
    clips, masks = noise(1), np.zeros((1, 16, 32, 32), bool)
    masks[:, :, :5] = True
    shown = fade_background(clips, masks)
    assert np.array_equal(shown[:, :, :5], clips[:, :, :5])
    assert shown[:, :, 5:].std() < 0.25 * clips.std()
    assert shown[:, :, 5:].min() >= 184


def test_motion_share_tells_a_unit_of_change_from_one_of_brightness() -> None:
    change, bright = torch.zeros(3, 4, 4, 4), torch.full((3, 4, 4, 4), 1 / 192)
    change[:, 0], change[:, 1] = -1 / 48, 1 / 48
    clips = np.zeros((2, 16, 32, 32, 3), np.uint8)
    clips[:, 8:] = 255  # dark, then bright
    assert motion_share(one_layer(change), clips, np.array([8, 8]), 0) == 1.0
    assert motion_share(one_layer(bright), clips, np.array([12, 12]), 0) == pytest.approx(0.0, abs=1e-3)
