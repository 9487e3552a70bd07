"""The one door to onnxruntime: sessions, scoring, graph quantizers."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel

from autocompress.errors import UserError

Inputs = Mapping[str, NDArray[np.int64]]


@contextmanager
def _errors_of(path: Path, verb: str) -> Iterator[None]:
    """onnxruntime's own errors as ``UserError``; they share no base class of their own."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise UserError(f"{path}: onnxruntime cannot {verb} it: {str(error).splitlines()[0]}") from error


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
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_names = tuple(item.name for item in self.session.get_inputs())

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """The first output, such as logits of shape (batch, labels).

        Raises:
            UserError: inputs that the model cannot take, such as more tokens than it has positions.
        """
        with _errors_of(self.path, "run"):
            output: NDArray[np.float32] = self.session.run(None, dict(inputs))[0]
        return output


def predict(path: Path, batches: Sequence[Inputs]) -> NDArray[np.float32]:
    """First output for all batches, one below the other; each core works on batches of its own."""
    model = Model(path, threads=1)
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        return np.concatenate(list(pool.map(model, batches)))
    finally:
        pool.shutdown(cancel_futures=True)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Inputs]) -> None:
        self.batches = iter([dict(batch) for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


@contextmanager
def _quantizing(path: Path) -> Iterator[None]:
    """Errors as ``UserError``, and silence: the quantizers advise steps that are no use here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), _errors_of(path, "quantize"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def quantize_dynamic_int8(source: Path, target: Path, only: Sequence[str] | None = None) -> None:
    """Weights to int8 per channel, activations to uint8 per run.

    Args:
        only: op types to convert; all that can be by default, the embedding's Gather among them.
    """
    with _quantizing(source):
        quantize_dynamic(source, target, op_types_to_quantize=only, per_channel=True, weight_type=QuantType.QInt8)


def quantize_static_int8(source: Path, target: Path, calibration: Iterable[Inputs]) -> None:
    """Weights to int8 per channel, activations to uint8 by ranges seen on the calibration batches (min-max), as QDQ.

    Only matrix products and the embedding: the attention mask's huge negative numbers would spoil any range they share.
    """
    weighted = ["MatMul", "Gemm", "Gather"]
    with _quantizing(source):
        quantize_static(
            source,
            target,
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=weighted,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": weighted},
        )


def quantize_matmul_weights(source: Path, target: Path, bits: int, block_size: int) -> None:
    """Weights of matrix products to int4 or int8 in blocks along the inputs; computed with int8 activations."""
    with _quantizing(source):
        graph = ONNXModel(onnx.load(source))
        graph.replace_gemm_with_matmul()
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True, accuracy_level=4, bits=bits)
        quantizer = MatMulNBitsQuantizer(graph.model, algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, target)


def declare_inputs(path: Path, names: Sequence[str]) -> None:
    """Declare inputs that the exporter dropped because nothing reads them, so that all models are called alike."""
    model = onnx.load(path)
    present = {item.name for item in model.graph.input}
    missing = [name for name in names if name not in present]
    if missing:
        for name in missing:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"]))
        onnx.save(model, path)


def float_weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of the fp32 matrices, by name: what a quantizer left; its own scales are not counted."""
    graph = onnx.load(path).graph
    return {
        tensor.name: 4 * int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2 and not tensor.name.endswith(("_scale", "_scales"))
    }
