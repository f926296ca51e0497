"""Packed CNNs compute the float network's integers: every layer is compared with the float network in evaluation."""

from itertools import combinations

import pytest
import torch
from cnns import bncvl_codes, random_bncvl, random_pictures, random_vgg, unpacked_bits, vgg_bits

from bnn_exp.bits.convolutions import border_classes, from_rows, to_rows
from bnn_exp.deploy import pack_network
from bnn_exp.nn.requantize import NoIntegers


@pytest.mark.parametrize("seed", range(12))
def test_every_layer_of_a_packed_vgg_gives_the_bits_of_the_float_network(seed):
    network = random_vgg(seed)
    packed, pixels = pack_network(network), random_pictures(network)
    h = pixels.permute(0, 2, 3, 1).contiguous()
    for layer, expected in zip(packed.layers[:-1], vgg_bits(network, pixels), strict=True):
        h = layer(h)
        assert torch.equal(unpacked_bits(h, layer.outputs), expected)
    with torch.no_grad():
        assert torch.equal(packed(pixels), network(pixels))


@pytest.mark.parametrize("seed", [*range(9), *range(10, 13)])  # 9 draws a network of two codes
def test_every_layer_of_a_packed_bncvl_gives_the_codes_of_the_float_network(seed):
    network = random_bncvl(seed)
    packed, pixels = pack_network(network), random_pictures(network)
    h, used = pixels.permute(0, 2, 3, 1).contiguous(), set()
    for layer, expected in zip(packed.layers[:-1], bncvl_codes(network, pixels), strict=True):
        h = layer(h)
        assert torch.equal(h, expected)
        used |= set(h.flatten().tolist())
    assert len(used) > 4  # the random norms use more than a few codes
    with torch.no_grad():
        assert torch.equal(packed(pixels), network(pixels))


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("make", [random_vgg, random_bncvl])
def test_a_batch_norm_that_is_not_finite_has_no_form_in_integers(make, name, number):
    """∞ · 0 + shift is no number, so a scale and a shift do not compute what the BatchNorm computes."""
    network = make(1)
    layer = getattr(network, "norms", network.convolutions)[0]
    getattr(getattr(layer, "norm", layer), name).data[1] = number
    with pytest.raises(NoIntegers, match="is not a finite number, so the network has no form in integers"):
        pack_network(network)


def test_rows_of_weights_come_back():
    bits = torch.randint(0, 2, (5, 3, 3, 11), dtype=torch.uint8)
    for codes, columns in ((True, 3 * 5), (False, 9 * 2)):
        rows = to_rows(bits, codes)
        assert rows.shape == (5, columns)
        assert torch.equal(from_rows(rows, 3, 11, codes), bits)


@pytest.mark.parametrize(("length", "size"), [(1, 1), (1, 3), (2, 5), (3, 3), (9, 5)])
def test_positions_of_one_border_class_have_equal_places_inside(length, size):
    half = size // 2
    inside = [tuple(0 <= y + k - half < length for k in range(size)) for y in range(length)]
    classes = border_classes(length, size).tolist()
    assert max(classes) < size
    for (one, of_one), (other, of_other) in combinations(zip(classes, inside, strict=True), 2):
        assert (one == other) == (of_one == of_other)
