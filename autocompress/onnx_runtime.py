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
VERSION: str = onnxruntime.__version__


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
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            if type(error).__module__.partition(".")[0] != "onnxruntime":
                raise
            raise UserError(f"{path}: onnxruntime cannot load it: {str(error).splitlines()[0]}") from error
        self.input_names = tuple(item.name for item in self.session.get_inputs())

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """The first output, such as logits of shape (batch, labels)."""
        output: NDArray[np.float32] = self.session.run(None, dict(inputs))[0]
        return output


def predict(path: Path, batches: Sequence[Inputs]) -> NDArray[np.float32]:
    """First output for all batches, one below the other; each core works on batches of its own."""
    model = Model(path, threads=1)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return np.concatenate(list(pool.map(model, batches)))


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Inputs]) -> None:
        self.batches = iter([dict(batch) for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizers advise steps that are no use here, through warnings and the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def quantize_dynamic_int8(source: Path, target: Path, only: Sequence[str] | None = None) -> None:
    """Weights to int8 per channel, activations to uint8 per run.

    Args:
        only: op types to convert; all that can be by default, the embedding's Gather among them.
    """
    with _quiet():
        quantize_dynamic(source, target, op_types_to_quantize=only, per_channel=True, weight_type=QuantType.QInt8)


def quantize_static_int8(source: Path, target: Path, calibration: Iterable[Inputs]) -> None:
    """Weights to int8 per channel, activations to uint8 by ranges seen on the calibration batches (min-max), as QDQ."""
    with _quiet():
        quantize_static(
            source,
            target,
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def quantize_matmul_weights(source: Path, target: Path, bits: int, block_size: int) -> None:
    """Weights of matrix products to int4 or int8 in blocks along the inputs; computed with int8 activations."""
    with _quiet():
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
