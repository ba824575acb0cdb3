"""On real images, by loss curve, a batch is one more seed of the published loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference import ReferenceNet, reference_fit

from dipdefense import DIPConfig, reconstruct

ITERATIONS = 100
SEEDS = 3


def centre_crop(path: Path, size: int = 224) -> torch.Tensor:
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


def published_curve(image: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    config = DIPConfig.paper()
    noise = torch.rand(32, 224, 224) * config.input_scale
    fresh = [torch.randn_like(noise) * config.noise_std for _ in range(ITERATIONS)]
    net = ReferenceNet(config, 3, 5)
    return torch.tensor(
        reference_fit(image, iterations=ITERATIONS, config=config, net=net, noise=noise, fresh=fresh).losses
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("position", [0, 300])
def test_loss_curve_lies_within_the_spread_of_the_published_loops_seeds(shared_data: Path, position: int) -> None:
    images = sorted((shared_data / "imagenet-sample" / "val").glob("*/*.JPEG"))
    image = centre_crop(images[position])
    published = torch.stack([published_curve(image, seed) for seed in range(SEEDS)]).log()
    run = reconstruct(image.expand(SEEDS, -1, -1, -1), budgets=(ITERATIONS,), seed=list(range(SEEDS)), precision="fp32")
    own = run.losses.T.log()
    # Steps of ten iterations: single ones carry the fresh noise.
    published, own = (curves.unflatten(1, (-1, 10)).mean(dim=2) for curves in (published, own))
    # The spread of seeds, pooled: three of them alone say too little of it. And it allows no more than 30 %.
    spread = torch.stack([published.var(dim=0), own.var(dim=0)]).mean(dim=0).sqrt()
    difference = own.mean(dim=0) - published.mean(dim=0)
    print("difference of log losses", difference, "spread of seeds", spread)
    assert (difference.abs() < (3 * spread * (2 / SEEDS) ** 0.5).clamp(max=0.3)).all()
    assert own[:, -1].max() < own[:, 0].min() - 0.5
