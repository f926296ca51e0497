"""ONNX graphs under construction (opset 18). Weights are initialisers of packed bits, and nodes unpack them.

A file then takes one bit for each weight. A runtime unpacks the weights once, when it loads the graph.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bnn_exp.bits import pack
from bnn_exp.records.formatting import in_a_line

OPSET, IR = 18, 10  # versions that onnxruntime reads since 2023


class Graph:
    """An ONNX graph under construction. Each method adds nodes or initialisers and returns the name of the result.

    A call `graph(OPERATOR, *inputs, **attributes)` adds a node; `inputs` are names.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple, str] = {}
        self._number = count()

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{next(self._number)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def named(self, value: str, name: str) -> str:
        """Gives `value`, which no node reads yet, another name, and returns this name."""
        last = self.nodes[-1]
        if last.output[0] == value:
            last.output[0] = name
        else:
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        return name

    def constant(self, values: Tensor | np.ndarray | Sequence | float, dtype: type | None = None) -> str:
        """Adds an initialiser. Equal ones share it."""
        array: np.ndarray = np.asarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values, dtype)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{next(self._number)}"
            self.constants.append(numpy_helper.from_array(np.array(array, order="C"), self._known[key]))
        return self._known[key]

    def weights(self, bits: Tensor, zero: float, one: float, dtype: type) -> str:
        """Adds nodes that unpack weights: `one` for a bit 1, `zero` for a bit 0.

        Args:
            bits: uint8, 0 or 1, in the shape of the weights.
            dtype: the dtype of the weights.
        """
        rows = pack(bits.reshape(1, -1))[0]
        wide = self("Gather", self._table(zero, one, dtype), self.cast(self.constant(rows), TensorProto.INT32))
        if 8 * len(rows) > bits.numel():
            ends = ([0], [bits.numel()], [0])
            wide = self(
                "Slice", self("Reshape", wide, self.constant([-1], np.int64)), *(self.constant(n, np.int64) for n in ends)
            )
        return self("Reshape", wide, self.constant(bits.shape, np.int64))

    def _table(self, zero: float, one: float, dtype: type) -> str:
        """Adds nodes for the weights of every byte, `dtype` [256, 8]."""
        key = (zero, one, dtype)
        if key not in self._known:
            numbers = self("Range", *(self.constant(n, np.int32) for n in (0, 256, 1)))
            column = self("Reshape", numbers, self.constant([256, 1], np.int64))
            bits = self.cast(self("BitwiseAnd", column, self.constant(2 ** np.arange(8), np.int32)), TensorProto.BOOL)
            weights = self("Where", bits, self.floats(one), self.floats(zero))
            self._known[key] = self.cast(weights, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        return self._known[key]

    def cast(self, value: str, to: int) -> str:
        return self("Cast", value, to=to)

    def floats(self, values: Tensor | float) -> str:
        return self.constant(values, np.float32)

    def affine(self, h: str, norm: nn.Module, shape: tuple[int, ...] = (-1,)) -> str:
        """Adds nodes for the scale and the shift of a folded BatchNorm. `shape` broadcasts a vector of channels over `h`."""
        scaled = self("Mul", h, self.floats(norm.weight.reshape(shape)))
        return self("Add", scaled, self.floats(norm.bias.reshape(shape)))


def model(
    build: Callable[[Graph, Any, str], str], network: nn.Module, shape: Sequence[int], classes: Sequence[str]
) -> onnx.ModelProto:
    """Returns the ONNX model whose nodes `build(graph, network, "pixels")` adds.

    The input is `pixels`, uint8 [batch, *shape], the output `logits`, float32 [batch, classes]. The model's metadata hold the
    class names, one a line.
    """
    graph = Graph()
    graph.named(build(graph, network, "pixels"), "logits")
    made = helper.make_graph(
        graph.nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(classes)])],
        graph.constants,
    )
    result = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="bnn_exp")
    helper.set_model_props(result, {"classes": "\n".join(map(in_a_line, classes))})
    onnx.checker.check_model(result, full_check=True)
    return result
