import pytest
import torch
import torch.nn.functional as F

from bnn_exp.data.augment import Augment
from bnn_exp.nn import operators

PICTURES = torch.randint(1, 256, (2000, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def shifts(before, after, reach):
    """Returns the shift (down, across) of each image. Tries every shift: exactly one must fit, with zeros where pixels moved
    in."""
    padded, (height, width) = F.pad(before, [reach] * 4), before.shape[2:]
    found = torch.full((len(before), 2), 99)
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            window = padded[:, :, reach - down :, reach - across :][:, :, :height, :width]
            fits = (window == after).flatten(1).all(1)
            assert (found[fits] == 99).all()
            found[fits] = torch.tensor([down, across])
    return found


def test_a_shift_moves_all_pixels_by_so_many_and_fills_zeros():
    found = shifts(PICTURES, Augment(0, shift=2)(PICTURES, 0, 0), 2)
    assert found.abs().max() == 2  # every image has an explanation
    counts = torch.bincount((found[:, 0] + 2) * 5 + found[:, 1] + 2, minlength=25)
    assert counts.min() > 0
    assert ((counts - 80).abs() < 5 * (2000 / 25) ** 0.5).all()  # uniform to within five standard deviations


def test_a_flip_is_the_mirror_image_of_half_of_them():
    after = Augment(0, flip=True)(PICTURES, 0, 0)
    same, mirrored = ((after == x).flatten(1).all(1) for x in (PICTURES, PICTURES.flip(3)))
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 1000) < 5 * (2000 / 4) ** 0.5  # five standard deviations


def test_a_cutout_is_one_black_square_that_may_reach_over_the_edge():
    after = Augment(0, cutout=4)(PICTURES, 0, 0)
    black = (after == 0).all(1)
    assert torch.equal(after, PICTURES * ~black[:, None])
    rows, columns = black.any(2), black.any(1)
    assert torch.equal(black, rows[:, :, None] & columns[:, None, :])  # black pixels form a product of rows and columns
    for lines in (rows, columns):
        extent = lines.int()
        assert (extent.diff().abs().sum(1) <= 2).all()  # each side is one piece, so the black area is a rectangle
        assert extent.sum(1).min() == 2 and extent.sum(1).max() == 4
        assert extent.sum(0).min() > 0


def test_nothing_asked_is_nothing_changed():
    assert torch.equal(Augment(0)(PICTURES, 0, 0), PICTURES)


def test_the_draws_depend_on_seed_epoch_and_batch_alone():
    def varied(seed, epoch, batch):
        return Augment(seed, shift=2, flip=True, cutout=2)(PICTURES, epoch, batch)

    first = varied(1, 2, 3)
    torch.manual_seed(9)
    assert torch.equal(first, varied(1, 2, 3))
    assert all(not torch.equal(first, varied(*key)) for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0)))


def test_each_sample_is_varied_by_itself():
    alike = PICTURES[:1].expand(200, -1, -1, -1)
    varied = Augment(0, shift=2, flip=True)(alike, 0, 0)
    assert len(varied.flatten(1).unique(dim=0)) > 40  # 2·25 changes are possible


@pytest.mark.parametrize("side", [1, 3])
def test_more_than_a_picture_can_bear_leaves_its_shape(side):
    x = torch.full((50, 1, side, side), 7, dtype=torch.uint8)
    varied = Augment(0, shift=8, flip=True, cutout=20)(x, 0, 0)
    assert varied.shape == x.shape and varied.dtype == torch.uint8 and (varied == 0).all()


def test_a_resumed_training_draws_the_same():
    from helpers import small_trainer, timeless

    def trainer():
        return small_trainer("dataset.augment=standard", "dataset.flip=true", "dataset.cutout=3", "dataset.validation=0.2")

    straight, stopped, resumed, batches = trainer(), trainer(), trainer(), iter(range(100))
    expected = straight.epoch() | straight.evaluate()[0]
    assert stopped.epoch(stop=lambda: next(batches) == 5) is None
    resumed.load(stopped.state())
    assert timeless([resumed.epoch() | resumed.evaluate()[0]]) == timeless([expected])
    plain = small_trainer("dataset.validation=0.2")
    assert plain.epoch()["train_loss"] != expected["train_loss"] and 0 <= expected["validation_accuracy"] <= 100


@pytest.mark.parametrize(
    "options", [{"flip": True}, {"shift": 3}, {"cutout": 4}, {"flip": True, "shift": 2, "cutout": 3}, {"shift": 9}], ids=str
)
@pytest.mark.parametrize("share", [slice(None), slice(5, 17)], ids=["whole batch", "share"])
def test_the_kernel_returns_the_images_of_the_definition(options, share, monkeypatch, triton_runs):
    """Both draw by Philox, from the number of the batch, which is a tensor. Triton's interpreter runs the kernel."""
    x, number, augment = PICTURES[:20], torch.tensor((3 << 32) + 7), Augment(5, **options)
    whole = augment(x, 0, 0, number=number)
    monkeypatch.setattr(operators, "kernels_everywhere", True)
    found = augment(x[share], 0, 0, share, len(x), number)
    assert torch.equal(found, whole[share]) and not torch.equal(found, x[share])
    assert not torch.equal(found, augment(x[share], 0, 0, share, len(x), number + 1))
