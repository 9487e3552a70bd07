"""The one door to onnxruntime: sessions, scoring, quantizers.

onnxruntime reports its use to Microsoft unless ``ORT_DISABLE_TELEMETRY`` is in the environment when
it is imported; importing this module puts 1 there where there is no value yet.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantizationMode,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata
from onnxruntime.quantization.registry import IntegerOpsRegistry
from onnxruntime.transformers.float16 import convert_float_to_float16

from autocompress.errors import UserError
from autocompress.graphs.reading import PAST, layer_of

Inputs = Mapping[str, NDArray[Any]]
_TABLE = "/table/"
"""Begins the names of the nodes that read a quantized table."""
_PRESENT = "present."
"""Of the names of the outputs that hold a cache."""


@contextmanager
def _errors_of(path: Path, verb: str) -> Iterator[None]:
    """onnxruntime's own errors as ``UserError``; they share no base class of their own."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise UserError(
            f"{path}: onnxruntime cannot {verb} it: {str(error).splitlines()[0]}"
        ) from error


class Model:
    """An ONNX file ready to run on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        """Raises:
        UserError: not a file that onnxruntime can run.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.path = path
        with _errors_of(path, "load"):
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        self.input_names = tuple(item.name for item in self.session.get_inputs())
        self.output_names = [item.name for item in self.session.get_outputs()]

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """The first output, such as logits of shape (batch, labels).

        Raises:
            UserError: inputs that the model cannot take, such as more tokens than it has positions.
        """
        with _errors_of(self.path, "run"):
            output: NDArray[np.float32] = self.session.run(
                self.output_names[:1], self.completed(inputs)
            )[0]
        return output

    def outputs(self, inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        """All outputs by name; raises as a call."""
        with _errors_of(self.path, "run"):
            return dict(
                zip(self.output_names, self.session.run(None, self.completed(inputs)), strict=True)
            )

    def completed(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """The inputs, and an empty cache for what of it they do not give."""
        missing = [
            item
            for item in self.session.get_inputs()
            if item.name.startswith(PAST) and item.name not in inputs
        ]
        rows = len(next(iter(inputs.values())))
        return {
            **inputs,
            **{
                item.name: np.zeros((rows, item.shape[1], 0, item.shape[3]), np.float32)
                for item in missing
            },
        }


def past_of(outputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The cache that came out of one run, as the next one takes it in."""
    return {
        PAST + name.removeprefix(_PRESENT): value
        for name, value in outputs.items()
        if name.startswith(_PRESENT)
    }


def loading_ms(path: Path) -> float:
    """CPU time that a session takes to load a file, decoding included; the least of three."""

    def once() -> float:
        started = time.thread_time()
        Model(path, threads=1)
        return 1000 * (time.thread_time() - started)

    return min(once() for _ in range(3))


def predict(
    path: Path,
    batches: Sequence[Inputs],
    keep: Callable[[NDArray[Any], Inputs], NDArray[Any]] = lambda output, batch: output,
) -> NDArray[Any]:
    """First output for all batches, one below the other; each core works on batches of its own.

    Args:
        keep: from an output and its batch, which may hold more than the model's inputs, to what is
            kept.
    """
    model = Model(path, threads=1)
    pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def answer(batch: Inputs) -> NDArray[Any]:
        return keep(
            model({name: batch[name] for name in model.input_names if name in batch}), batch
        )

    try:
        return np.concatenate(list(pool.map(answer, batches)))
    finally:
        pool.shutdown(cancel_futures=True)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Inputs]) -> None:
        self.batches = iter([dict(batch) for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


@contextmanager
def _quantizing(source: Path, target: Path) -> Iterator[None]:
    """Errors as ``UserError``, and silence: the quantizers advise steps that are no use here. Their
    temporary files lie beside the target, where what a kill leaves of it is deleted with it."""
    before = logging.root.manager.disable, tempfile.tempdir
    logging.disable(logging.WARNING)
    tempfile.tempdir = str(target.parent)
    try:
        with warnings.catch_warnings(), _errors_of(source, "quantize"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before[0])
        tempfile.tempdir = before[1]


def _nodes_of(model: onnx.ModelProto, layers: Collection[int]) -> list[str]:
    """Names of the nodes that a quantizer must leave: those of the layers, and those that read a
    table already quantized."""
    return [
        node.name
        for node in model.graph.node
        if layer_of(node.name) in layers or node.name.startswith(_TABLE)
    ]


def _without_gemm(path: Path) -> onnx.ModelProto:
    """The graph with its Gemms written as MatMul and Add, as some quantizers need it; their nodes
    get other names."""
    graph = ONNXModel(onnx.load(path))
    graph.replace_gemm_with_matmul()
    return graph.model


def convert_to_fp16(source: Path, target: Path) -> None:
    """Weights and arithmetic to float16; the model's inputs and outputs keep their types.

    LayerNormalization is one node and sums in fp32 inside; an RMS norm of single nodes, which would
    square in float16, stays in fp32.
    """
    with _quantizing(source, target):
        model = onnx.load(source)
        norms = [
            node.name
            for node in model.graph.node
            if "norm/" in node.name and node.op_type != "LayerNormalization"
        ]
        model = convert_float_to_float16(model, keep_io_types=True, node_block_list=norms)
    nodes = list({node.output[0]: node for node in model.graph.node}.values())
    narrowed = {
        node.output[0]: node.input[0] for node in nodes if node.name.endswith("_cast_to_fp16_node")
    }
    there_and_back = {
        node.output[0]: narrowed.get(node.input[0])
        for node in nodes
        if node.name.endswith("_cast_to_fp32_node")
    }
    for node in nodes:
        node.input[:] = [there_and_back.get(name) or name for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


def quantize_dynamic_int8(
    source: Path, target: Path, only: Sequence[str] | None = None, spared: Collection[int] = ()
) -> None:
    """Weights to int8 per channel, activations to uint8 per run.

    Args:
        only: op types to convert; all that can be by default, the embedding's Gather among them.
        spared: layers to leave as they are.
    """
    with _quantizing(source, target):
        model = _without_gemm(source)
        quantizer = _DynamicQuantizer(model, only or list(IntegerOpsRegistry), spared)
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(target)


class _DynamicQuantizer(ONNXQuantizer):  # type: ignore[misc]
    """To the same graph as onnxruntime's ``quantize_dynamic``, in a third of the time: shapes are
    inferred once, without copies of the weights, and all channels of a matrix rounded at once."""

    def __init__(
        self, model: onnx.ModelProto, op_types: Sequence[str], spared: Collection[int]
    ) -> None:
        _infer_shapes(model)
        add_infer_metadata(model)
        super().__init__(
            model,
            per_channel=True,
            reduce_range=False,
            mode=QuantizationMode.IntegerOps,
            static=True,  # for otherwise shapes are inferred again
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=None,
            nodes_to_quantize=[],
            nodes_to_exclude=_nodes_of(model, spared),
            op_types_to_quantize=op_types,
            extra_options={"MatMulConstBOnly": True},
        )
        self.static = False

    def quantize_weight_per_channel_impl(
        self, name: str, kind: int, axis: int, *_: Any
    ) -> tuple[str, str, str]:
        matrix = onnx.numpy_helper.to_array(self.initializers[name])
        channels = np.moveaxis(matrix, axis, -1).reshape(-1, matrix.shape[axis])
        scales = (2 * np.abs(channels).max(axis=0).astype(np.float64) / 254).astype(np.float32)
        scales[scales < np.finfo(np.float32).tiny] = 1
        shape = [scales.size if i == axis % matrix.ndim else 1 for i in range(matrix.ndim)]
        integers = np.rint(matrix / scales.reshape(shape)).clip(-128, 127).astype(np.int8)
        stored, by_channel, zeros = f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"
        make = onnx.helper.make_tensor
        self.model.initializer_extend(
            [
                make(by_channel, onnx.TensorProto.FLOAT, scales.shape, scales.tolist()),
                make(zeros, kind, scales.shape, [0] * scales.size),
                onnx.numpy_helper.from_array(integers, stored),
            ]
        )
        return stored, zeros, by_channel


def _infer_shapes(model: onnx.ModelProto) -> None:
    """As ``onnx.shape_inference``, from matrices without their numbers: copies take longest."""
    graph = model.graph
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) >= 2]
    shapes = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in matrices
    ]
    rest = [tensor for tensor in graph.initializer if len(tensor.dims) < 2]
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.CopyFrom(
        onnx.helper.make_graph(
            graph.node,
            graph.name,
            [*graph.input, *shapes],
            graph.output,
            rest,
            value_info=graph.value_info,
        )
    )
    inferred = onnx.shape_inference.infer_shapes(bare).graph.value_info
    del graph.value_info[:]
    graph.value_info.extend(inferred)


def quantize_static_int8(
    source: Path,
    target: Path,
    calibration: Iterable[Inputs],
    spared: Collection[int] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Weights to int8 per channel, activations to uint8 by ranges, as QDQ.

    Only matrix products and the embedding: the attention mask's huge negative numbers would spoil
    any range they share.

    Args:
        spared: layers to leave as they are.
        ranges: tensor to its least and largest number; of all others they are those seen on the
            calibration batches.
    """
    given = {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in (ranges or {}).items()
    }
    weighted = ["MatMul", "Gemm", "Gather"]
    with _quantizing(source, target):
        quantize_static(
            source,
            target,
            _Batches(map(Model(source, threads=1).completed, calibration)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=weighted,
            nodes_to_exclude=_nodes_of(onnx.load(source), spared),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": weighted,
                "TensorQuantOverrides": given,
            },
        )


def quantize_matmul_weights(
    source: Path, target: Path, bits: int, block_size: int, spared: Collection[int] = ()
) -> None:
    """Weights of matrix products to int4 or int8 in blocks along the inputs; computed with int8
    activations.

    Args:
        spared: layers to leave as they are.
    """
    with _quantizing(source, target):
        model, in_blocks = _without_gemm(source), _quantizers_in_blocks()
        config = in_blocks.DefaultWeightOnlyQuantConfig(
            block_size=block_size, is_symmetric=True, accuracy_level=4, bits=bits
        )
        quantizer = in_blocks.MatMulNBitsQuantizer(
            model, nodes_to_exclude=_nodes_of(model, spared), algo_config=config
        )
        quantizer.process()
        onnx.save(quantizer.model.model, target)


def _quantizers_in_blocks() -> Any:
    """A module of onnxruntime that sets up the process's logging when it is imported; this is
    undone."""
    log = logging.getLogger()
    handlers, level = [*log.handlers], log.level
    from onnxruntime.quantization import matmul_nbits_quantizer

    log.handlers[:] = handlers
    log.setLevel(level)
    return matmul_nbits_quantizer


def quantize_int8_by_token(source: Path, target: Path, spared: Collection[int] = ()) -> None:
    """Weights to int8 per channel, activations to 8 bits with a scale for each token; the embedding
    to int8.

    The first token of a text has far larger activations than the others: with one scale for all of
    a text SmolLM2's perplexity went from 36 to 63, with one for each token to 37. And a text gives
    the same read at once and token by token.

    Args:
        spared: layers to leave as they are.
    """
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    kept = set(_nodes_of(model, spared))
    scaled: dict[str, tuple[str, str]] = {}
    held: dict[str, NDArray[Any]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or node.name in kept:
            nodes.append(node)
            continue
        given, name = node.input
        if given not in scaled:
            scaling, integers, largest = _scaled_by_token(given)
            nodes += scaling
            scaled[given] = integers, largest
        matrix = onnx.numpy_helper.to_array(weights[name])
        scales = np.maximum(np.abs(matrix).max(axis=0) / 127, np.float32(1e-12))
        stored, by_channel = f"{name}_quantized", f"{name}_scale"
        held |= {stored: np.rint(matrix / scales).astype(np.int8), by_channel: scales}
        nodes += _product_by_token(*scaled[given], stored, by_channel, node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    _add_constants(model, held | _BY_TOKEN)
    onnx.save(model, target)
    quantize_dynamic_int8(target, target, only=["Gather"])


_BY_TOKEN: dict[str, NDArray[Any]] = {
    f"{_TABLE}step": np.array(1 / 127, np.float32),
    f"{_TABLE}zero": np.array(128, np.uint8),
}


def _scaled_by_token(given: str) -> tuple[list[onnx.NodeProto], str, str]:
    """Nodes that bring each token's activations to 8 bits, and the names of the integers and of
    each token's largest number, which may be zero: the integers are then whatever 0 / 0 becomes,
    and count nothing."""
    step, zero = _BY_TOKEN
    names = {
        part: f"{_TABLE}{part}_{given}" for part in ("Abs", "ReduceMax", "Div", "QuantizeLinear")
    }
    make = onnx.helper.make_node
    nodes = [
        make("Abs", [given], [names["Abs"]], names["Abs"]),
        make(
            "ReduceMax",
            [names["Abs"]],
            [names["ReduceMax"]],
            names["ReduceMax"],
            axes=[-1],
            keepdims=1,
        ),
        make("Div", [given, names["ReduceMax"]], [names["Div"]], names["Div"]),
        make(
            "QuantizeLinear",
            [names["Div"], step, zero],
            [names["QuantizeLinear"]],
            names["QuantizeLinear"],
        ),
    ]
    return nodes, names["QuantizeLinear"], names["ReduceMax"]


def _product_by_token(
    quantized: str, largest: str, weights: str, scales: str, replaced: onnx.NodeProto
) -> list[onnx.NodeProto]:
    """In place of a node, the product of such integers with int8 weights."""
    step, zero = _BY_TOKEN
    unscaled = f"{replaced.output[0]}_of_unit"
    inputs = [quantized, weights, step, scales, zero]
    return [
        onnx.helper.make_node(
            "MatMulIntegerToFloat", inputs, [unscaled], replaced.name, domain="com.microsoft"
        ),
        onnx.helper.make_node(
            "Mul", [unscaled, largest], [replaced.output[0]], f"{replaced.name}_by_token"
        ),
    ]


def _add_constants(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]]) -> None:
    present = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, key)
        for key, array in arrays.items()
        if key not in present
    )
    if not any(item.domain == "com.microsoft" for item in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def quantize_tied_table(source: Path, target: Path) -> bool:
    """Store the table that an embedding and a tied head share once, as int8 with a scale for each
    token.

    The head multiplies with it as ``quantize_int8_by_token`` would have it, the embedding reads its
    columns. Held in blocks (GatherBlockQuantized and MatMulNBits) it would be read faster, and
    multiplied by many tokens three times slower.

    Returns:
        Whether the graph has such a table; nothing is written otherwise.
    """
    model = onnx.load(source)
    graph = model.graph
    embeddings = {node.input[0]: node for node in graph.node if node.op_type == "Gather"}
    head = next(
        (node for node in graph.node if node.op_type == "Gemm" and node.input[1] in embeddings),
        None,
    )
    if head is None:
        return False
    name = head.input[1]
    embedding = embeddings[name]
    [tensor] = [tensor for tensor in graph.initializer if tensor.name == name]
    table = onnx.numpy_helper.to_array(tensor)
    scales = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, np.float32(1e-12))
    stored, by_product, by_row = f"{name}_quantized", f"{name}_scale", f"{name}_row_scale"
    held = {
        stored: np.rint(table / scales).astype(np.int8).T,
        by_product: scales[:, 0],
        by_row: scales,
    }

    def read(kind: str, inputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
        return onnx.helper.make_node(
            kind,
            inputs,
            [f"{_TABLE}{kind}_{inputs[0]}"],
            f"{_TABLE}{kind}_{inputs[0]}",
            **attributes,
        )

    columns = read("Gather", [stored, embedding.input[1]], axis=1)
    rows = read("Transpose", columns.output, perm=[1, 2, 0])
    numbers = read("Cast", rows.output, to=onnx.TensorProto.FLOAT)
    factors = read("Gather", [by_row, embedding.input[1]])
    embedded = onnx.helper.make_node(
        "Mul", [numbers.output[0], factors.output[0]], embedding.output, embedding.name
    )
    scaling, quantized, factor = _scaled_by_token(head.input[0])
    product = _product_by_token(quantized, factor, stored, by_product, head)
    replaced = {
        embedding.name: [columns, rows, numbers, factors, embedded],
        head.name: [*scaling, *product],
    }
    nodes = [new for node in graph.node for new in replaced.get(node.name, [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.remove(tensor)
    _add_constants(model, held | _BY_TOKEN)
    onnx.save(model, target)
    return True
