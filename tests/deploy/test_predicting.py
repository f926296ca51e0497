"""Packed networks as one compiled call: `predict` and `scores` give what the layers of the network give one by one."""

import copy
import os
import pickle
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import with_any_norms
from torch import nn

from bnn_exp.bits.cpu import network as compiled
from bnn_exp.deploy import pack_network
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pictures(*shape: int) -> torch.Tensor:
    """Returns random pixels. In every second picture most pixels are 0, in blocks."""
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    x[::2, ..., shape[-1] // 3 :] = 0
    return x


def by_layers(packed: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns the logits of the network's layers, called one by one, each with a float BatchNorm at the end."""
    h = x.flatten(1)
    for layer in packed.layers:
        h = layer(h)
    return h


@pytest.mark.parametrize("encoding", ["boolean", "bipolar", "centred"])
@pytest.mark.parametrize(
    ("inputs", "hidden", "classes", "layers"), [(784, 100, 10, 4), (37, 129, 65, 3), (9, 1, 1, 1), (64, 300, 3, 2)]
)
def test_one_call_computes_what_the_layers_and_the_float_network_compute(encoding, inputs, hidden, classes, layers):
    network = with_any_norms(MLP(inputs, classes, hidden, layers, encoding))
    packed = pack_network(network)
    for batch in (0, 1, 2, 3, 4, 7, 64, 300):
        x = pictures(batch, inputs)
        logits = packed(x)
        assert torch.equal(logits, by_layers(packed, x)) and torch.equal(logits, network(x))
        assert torch.equal(packed.scores(x), logits) and torch.equal(packed.predict(x), logits.argmax(1))


def test_numpy_gives_numpy_and_one_picture_gives_one_answer():
    packed = pack_network(with_any_norms(MLP(3 * 8 * 8, 5, 70, 3)), (3, 8, 8))
    x = pictures(6, 3, 8, 8)
    scores, classes = packed(x), packed(x).argmax(1)
    for kind, one in ((lambda t: t, torch.Tensor), (lambda t: t.numpy(), np.integer)):
        found = packed.predict(kind(x)), packed.scores(kind(x))
        assert all(type(each) is type(kind(x)) for each in found)
        assert [str(each.dtype).removeprefix("torch.") for each in found] == ["int64", "float32"]
        assert np.array_equal(found[0], classes) and np.array_equal(found[1], scores)
        for i in range(6):
            answer = packed.predict(kind(x)[i])
            assert isinstance(answer, one) and int(answer) == classes[i]
            assert np.array_equal(packed.scores(kind(x)[i]), scores[i])
            assert int(packed.predict(kind(x)[i].reshape(-1))) == classes[i]
    assert packed.predict(x[:0]).shape == (0,) and packed.scores(x[:0].numpy()).shape == (0, 5)


def test_pixels_of_any_strides_and_read_only_ones():
    packed = pack_network(with_any_norms(MLP(40, 4, 70, 3)))
    x = pictures(18, 40)
    expected = packed.predict(x.contiguous()).numpy()
    wide = torch.stack([x, x.flip(1)], 2)[..., 0]
    fixed = x.numpy().copy()
    fixed.flags.writeable = False
    for given in (wide, x.t().contiguous().t(), wide.numpy(), np.asfortranarray(x.numpy()), fixed):
        assert np.array_equal(packed.predict(given), expected)
    assert np.array_equal(packed.predict(x.numpy()[::-1]), expected[::-1])


def test_a_grey_picture_is_one_picture_where_the_network_knows_its_shape():
    network = with_any_norms(MLP(64, 5, 20, 3))
    x = pictures(3, 1, 8, 8)
    known, unknown = pack_network(network, (1, 8, 8)), pack_network(network)
    assert known.predict(x[0]).shape == () and unknown.predict(x[0]).shape == (1,)
    for packed in (known, unknown):
        assert torch.equal(packed.predict(x[:, 0]), packed.predict(x))  # [n, height, width]
        assert packed.predict(x[0, 0]) == packed.predict(x)[0]


@pytest.mark.parametrize(
    "wrong",
    [torch.rand(2, 64), torch.zeros(2, 63, dtype=torch.uint8), np.zeros((1, 9, 8)), np.zeros((), np.uint8), [[0] * 64], None],
)
def test_other_pixels_are_refused_in_a_line(wrong):
    packed = pack_network(MLP(64, 3, 5, 2), (1, 8, 8))
    for method in (packed.predict, packed.scores):
        with pytest.raises(ValueError, match=r"^pixels are .*: must be uint8 \[n, 1, 8, 8\] or \[1, 8, 8\].*$"):
            method(wrong)


def test_among_equal_scores_the_first_counts_and_nan_is_the_greatest():
    """The rule of torch's and numpy's argmax, for logits that the shifts of the last BatchNorm make."""
    packed = pack_network(MLP(16, 6, 8, 2))
    x = pictures(5, 16)
    nan = float("nan")
    for shifts in (
        [0.0] * 6,
        [1.0, 3.0, 3.0, 2.0, 3.0, 0.0],
        [1.0, nan, 5.0, nan, 0.0, 0.0],
        [nan] * 6,
        [-0.0, 0.0, 0, 0, 0, 0],
    ):
        with torch.no_grad():
            packed.layers[-1].norm.weight.zero_()
            packed.layers[-1].norm.bias.copy_(torch.tensor(shifts))
        assert torch.equal(packed.predict(x), by_layers(packed, x).argmax(1))


def test_binary_logits_and_cnns_predict_too():
    binary = pack_network(with_any_norms(MLP(30, 4, 70, 3, binarize_logits=True)))
    cnn = pack_network(BNCVLNet((3, 8, 8), 5, (4,), 1, dense=(6,)).eval(), (3, 8, 8))
    for packed, x in ((binary, pictures(9, 30)), (cnn, pictures(9, 3, 8, 8))):
        logits = packed(x)
        for kind in (lambda t: t, lambda t: t.numpy()):
            assert np.array_equal(packed.scores(kind(x)), logits) and np.array_equal(packed.predict(kind(x)), logits.argmax(1))
            assert int(packed.predict(kind(x)[2])) == logits[2].argmax()
    with pytest.raises(ValueError, match="pixels are"):
        cnn.predict(pictures(2, 1, 8, 8))


def test_a_change_in_place_a_copy_and_a_move_are_computed_anew():
    packed, other = (pack_network(with_any_norms(MLP(30, 4, 70, 3))) for _ in range(2))
    x = pictures(9, 30)
    before, after = packed(x), other(x)
    copies = copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))
    moved = copy.deepcopy(packed).to("cpu")
    packed.load_state_dict(other.state_dict())
    assert not torch.equal(before, after) and torch.equal(packed(x), after)
    assert all(torch.equal(each(x), before) for each in (*copies, moved))
    with pytest.raises(RuntimeError, match="dtype"):  # of torch's BatchNorm: a call that reads float32 would give nonsense
        copies[0].double().predict(x)


def test_tensors_in_the_place_of_those_that_were_compiled():
    packed, other = (pack_network(with_any_norms(MLP(30, 4, 70, 3))) for _ in range(2))
    x = pictures(9, 30)
    before, after = packed(x), other(x)
    packed.layers.double()  # frees the memory of the last BatchNorm
    freed = [torch.full((4,), 7.0) for _ in range(1000)]
    assert torch.equal(packed(x), before) and len(freed) == 1000
    packed.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(packed(x), after)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_is_refused():
    """A trace sees no compiled call, and would hold numbers that no kernel has computed."""
    packed, x = pack_network(MLP(30, 4, 70, 3)), pictures(9, 30)
    with pytest.raises(Exception, match="pyobject"):
        torch.jit.trace(packed, x)


def test_threads_share_rows_and_may_call_at_a_time(monkeypatch):
    """Work that is worth several threads is set to very little."""
    network = with_any_norms(MLP(50, 7, 130, 3))
    packed, threads = pack_network(network), torch.get_num_threads()
    batches = [pictures(rows, 50) for rows in (1, 3, 64, 130, 700)]
    expected = [network(x) for x in batches]
    monkeypatch.setattr(compiled, "THREAD_WORK", 64)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with ThreadPoolExecutor(4) as pool:
                found = [*pool.map(packed, batches * 10)]
                classes = [*pool.map(packed.predict, batches * 10)]
            assert all(torch.equal(a, b) for a, b in zip(found, expected * 10, strict=True))
            assert all(torch.equal(a, b.argmax(1)) for a, b in zip(classes, expected * 10, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have no such features")
def test_a_processor_without_avx512_computes_the_same(tmp_path):
    """The features stay those of a processor that rounds a product and a sum once, as torch does here."""
    features = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+popcnt", "NUMBA_CACHE_DIR": str(tmp_path)}
    code = "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'one_call', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", code, __file__], env=os.environ | features, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
