"""Networks of the paper (sections 2.2, 2.3, 3.2 and 3.4), created from settings."""

from __future__ import annotations

from torch import nn

from vgan.models.autoencoder import Autoencoder
from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.future import FutureGenerator, WideFutureGenerator
from vgan.models.generator import OneStreamGenerator, TwoStreamGenerator


def make_generator(config: ModelConfig) -> nn.Module:
    """Create the generator of a model, whose output is `GeneratorOutput`.

    Its input is noise (B, Z); images (B, 3, H, W) of a future model; clips (B, 3, T, H, W) of an autoencoder.
    """
    if config.architecture == "future":
        return WideFutureGenerator(config) if config.wide else FutureGenerator(config)
    classes = {"two_stream": TwoStreamGenerator, "one_stream": OneStreamGenerator, "autoencoder": Autoencoder}
    return classes[config.architecture](config)


def make_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """Create every trained network by name: generator and, except for the autoencoder, discriminator."""
    networks = {"generator": make_generator(config)}
    if config.architecture != "autoencoder":
        networks["discriminator"] = Discriminator(config)
    return networks
