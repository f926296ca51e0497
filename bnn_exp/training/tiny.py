"""A tiny training: the same kernels and the same libraries as a training of the settings, in the least time."""

from dataclasses import replace

import torch

from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset, Split

ROWS, WIDTH, CHANNELS = 1024, 64, 16  # upper limits of the batch size, of hidden layers and of the channels of convolutions


def tiny(settings: Settings, rows: int = ROWS) -> Settings:
    """Returns the settings with batches of at most `rows` samples, and with a narrower network of the same depth."""
    model = settings.model
    if isinstance(getattr(model, "hidden_size", None), int):
        model = replace(model, hidden_size=min(model.hidden_size, WIDTH))
    if isinstance(getattr(model, "channels", None), tuple):
        model = replace(model, channels=tuple(min(width, CHANNELS) for width in model.channels))
    trainer = replace(settings.trainer, batch_size=min(settings.trainer.batch_size, rows))
    return replace(settings, model=model, trainer=trainer)


def random_images(rows: int, device: torch.device) -> Dataset:
    """Returns a dataset of random grey images of 28 × 28 pixels in ten classes. Its train and test samples are the same."""
    images = torch.randint(256, (rows, 1, 28, 28), dtype=torch.uint8, device=device)
    split = Split(images, torch.arange(rows, device=device) % 10)
    return Dataset(split, None, split, tuple("0123456789"), (0.5,), (0.29,), "")
