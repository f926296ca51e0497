"""The images on which an export must give the predictions of the network."""

from typing import Any

import torch
from torch import Tensor

from bnn_exp.commands.task import Task
from bnn_exp.config import zoo
from bnn_exp.errors import UserError
from bnn_exp.records import probe_logits
from bnn_exp.training import plan

RANDOM = 1000  # the number of images of random pixels that take the place of missing test rows


def images_to_check(task: Task, about: dict[str, Any]) -> tuple[Tensor, str]:
    """Returns the test images of the network, uint8 [images, channels, height, width], and words for the message of the task.

    The words say how many images there are. A network of the zoo comes without data. If its dataset can't be read, the images
    have random pixels, and the words name the setting that gives the dataset.

    Args:
        about: the description of the network, see `bnn_exp.load_model`.

    Raises:
        UserError: the dataset can't be read.
    """
    try:
        images = torch.from_numpy(plan.read(task.dataset).test_images)
    except UserError:
        if not zoo.holds(task.model) or task.dataset.path:
            raise
        missing = f"dataset={task.dataset.name} is not on this machine; dataset.path=FOLDER gives its folder"
        return probe_logits.pixels(tuple(about["image_shape"]), RANDOM), f"{RANDOM:,} images of random pixels ({missing})"
    return images, f"{len(images):,} test rows"
