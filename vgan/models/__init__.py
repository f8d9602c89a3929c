"""The networks of the paper, by kind."""

from __future__ import annotations

from torch import nn

from vgan.models.autoencoder import Autoencoder
from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.future import FutureGenerator, WideFutureGenerator
from vgan.models.generator import OneStreamGenerator, TwoStreamGenerator


def make_generator(config: ModelConfig) -> nn.Module:
    """What draws clips: from noise (B, Z), from images (B, 3, H, W), or (autoencoder) from clips. Returns Streams."""
    if config.architecture == "future":
        return WideFutureGenerator(config) if config.wide else FutureGenerator(config)
    kinds = {"two_stream": TwoStreamGenerator, "one_stream": OneStreamGenerator, "autoencoder": Autoencoder}
    return kinds[config.architecture](config)


def make_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """Every network that training moves: generator and, but for the autoencoder, discriminator."""
    networks = {"generator": make_generator(config)}
    if config.architecture != "autoencoder":
        networks["discriminator"] = Discriminator(config)
    return networks
