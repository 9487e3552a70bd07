"""Weights stored as codes or bitmaps: the same answers, to the last bit, from the bytes of the
formula."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from autocompress.formats import FORMATS, convert
from autocompress.graphs import reading
from autocompress.graphs.runtime import predict, quantize_dynamic_int8
from autocompress.graphs.storage import store
from autocompress.quantizers import QUANTIZERS
from autocompress.quantizers.centroids import Centroids
from autocompress.quantizers.codes import Codes, Matrix
from autocompress.quantizers.linear import Linear
from tests.small_graphs import batches, candidate, write_graphs

OUTPUTS, INPUTS = 256, 512
BATCH = [{"x": np.random.default_rng(9).normal(size=(3, INPUTS)).astype(np.float32)}]
NOTHING: dict[str, dict[str, int]] = {"codes": {}, "bitmaps": {}, "dense": {}}


def weights(zeros: float, seed: int = 0) -> Matrix:
    """(outputs, inputs), with a share of zeros."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.05, (OUTPUTS, INPUTS)).astype(np.float32)
    weight[rng.permutation(weight.size).reshape(weight.shape) < zeros * weight.size] = 0
    return weight


def write(path: Path, *matrices: Matrix, int8: bool = False) -> None:
    """``x`` times each matrix transposed, summed."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    names = [f"w{i}" for i in range(len(matrices))]
    nodes = [make("MatMul", ["x", name], [f"{name} x"], f"/layer.0/{name}") for name in names]
    nodes.append(make("Sum", [f"{name} x" for name in names], ["y"], "/sum"))
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value("x", onnx.TensorProto.FLOAT, ["batch", INPUTS])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", OUTPUTS])],
        [
            onnx.numpy_helper.from_array(np.ascontiguousarray(matrix.T), name)
            for name, matrix in zip(names, matrices, strict=True)
        ],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    if int8:
        quantize_dynamic_int8(path, path)


def held(path: Path) -> dict[str, int]:
    """Bytes of each tensor of a file."""
    tensors = onnx.load(path).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors}


def stored(path: Path, *codes: Codes) -> tuple[dict[str, dict[str, int]], int]:
    """What ``store`` says, and the bytes that it added; the file answers as it did."""
    answers, before = predict(path, BATCH), held(path)
    told = store(path, codes)
    assert predict(path, BATCH).tobytes() == answers.tobytes()
    return told, sum(size for name, size in held(path).items() if name not in before)


def formula(codes: Codes) -> float:
    """Bytes of the codes: bits of each index, or a bit for whether it is the commonest and its bits
    where it is not; table, scales; position and value of each outlier."""
    count = codes.indices.size
    others = count - np.bincount(codes.indices).max()
    bits = min(count * codes.bits, count + others * codes.bits)
    return float(bits / 8 + 4 * (codes.table.size + codes.scales.size) + 8 * len(codes.outliers))


def bitmap(array: NDArray[Any]) -> float:
    return float(array.size / 8 + np.count_nonzero(array) * array.itemsize)


def of_bits(bits: int, seed: int = 0) -> Matrix:
    """Without zeros."""
    return Centroids(bits).codes(weights(0, seed)).decode()


CONSTANTS = 120
"""Bytes of shapes and of shifts."""
OPERATORS = 2048
"""Bytes that they may take."""


@pytest.mark.parametrize("zeros", [0, 0.5, 0.99, 1])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_same_bits_from_the_bytes_of_the_formula(
    name: str, bits: int, zeros: float, tmp_path: Path
) -> None:
    """In fp32 and in int8, each by the smaller of codes and bitmap; dense where neither saves
    anything."""
    quantizer = QUANTIZERS[name](bits, "row" if QUANTIZERS[name].grouped else "tensor")
    weight = quantizer.codes(weights(zeros)).decode()
    codes = quantizer.found(weight)
    path = tmp_path / "model.onnx"
    for int8, matrix in ((False, "w0"), (True, "w0_quantized")):
        write(path, weight, int8=int8)
        [plain] = [t for t in onnx.load(path).graph.initializer if t.name == matrix]
        array = onnx.numpy_helper.to_array(plain)
        assert array.dtype == (np.int8 if int8 else np.float32)
        size_before = path.stat().st_size
        told, size = stored(path, codes)
        ways = {"codes": formula(codes), "bitmaps": bitmap(array)}
        expected = min(ways.values())
        if expected > array.nbytes - OPERATORS:
            assert told == NOTHING | {"dense": {matrix: array.nbytes}}
            assert path.stat().st_size == size_before
            continue
        assert size == pytest.approx(expected, rel=0.02, abs=CONSTANTS)
        assert path.stat().st_size <= size_before - array.nbytes + size + OPERATORS
        way = min(ways, key=lambda way: ways[way])
        assert told == NOTHING | {way: {matrix: pytest.approx(expected, abs=8)}}


def test_it_is_decoded_when_the_file_is_loaded(tmp_path: Path) -> None:
    """What runs is what runs of the plain file."""
    weight = Linear(4, "row").codes(weights(0.9)).decode()
    for int8, product in ((False, "MatMul"), (True, "DynamicQuantizeMatMul")):
        path, loaded = tmp_path / "model.onnx", tmp_path / "loaded.onnx"
        write(path, weight, int8=int8)
        stored(path, Linear(4, "row").found(weight))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(loaded)
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        onnxruntime.InferenceSession(path, options)
        assert [node.op_type for node in onnx.load(loaded).graph.node] == [product, "Sum"]


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_rows_of_an_embedding_are_looked_up_as_they_were(
    name: str, bits: int, tmp_path: Path
) -> None:
    """Whatever their number of indices to a word; ids of two axes and of three."""
    quantizer = QUANTIZERS[name](bits, "row" if QUANTIZERS[name].grouped else "tensor")
    codes = quantizer.codes(weights(0))
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    ids = [np.arange(24).reshape(2, 12), np.arange(24).reshape(2, 3, 4)]
    for int8, given in itertools.product((False, True), ids):
        [dense, zero] = codes.decode(), np.array(3, np.uint8)
        scale = np.array(np.abs(dense).max() / 127, np.float32)
        steps = np.clip(np.rint(dense / scale) + zero, 0, 255).astype(np.uint8)
        tensors = {"w_quantized": steps, "w_scale": scale, "w_zero_point": zero}
        tensors = tensors if int8 else {"w_quantized": dense}
        nodes = [make("Gather", ["w_quantized", "x"], ["rows"], "/lookup")]
        nodes += [make("DequantizeLinear", ["rows", *list(tensors)[1:]], ["y"])] if int8 else []
        kind, answer = onnx.TensorProto.FLOAT, "y" if int8 else "rows"
        graph = onnx.helper.make_graph(
            nodes,
            "graph",
            [value("x", onnx.TensorProto.INT64, [None] * given.ndim)],
            [value(answer, kind, [None] * (given.ndim + 1))],
            [onnx.numpy_helper.from_array(array, key) for key, array in tensors.items()],
        )
        opset, path = onnx.helper.make_opsetid("", 17), tmp_path / "model.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
        if steps.nbytes - OPERATORS < formula(codes) and int8:
            continue  # stored as it is
        before = predict(path, [{"x": given}])
        assert store(path, [codes])["codes"]
        after = predict(path, [{"x": given}])
        assert after.shape == before.shape and after.tobytes() == before.tobytes()


def test_each_matrix_is_found_by_its_bytes(tmp_path: Path) -> None:
    """Plain or transposed, whatever its name and whatever others there are; one that no code
    explains stays dense."""
    matrices = [of_bits(3, seed) for seed in range(3)]
    codes = [Centroids(3).found(matrices[1]), Centroids(3).found(matrices[0].T.copy())]
    for int8, suffix in ((False, ""), (True, "_quantized")):
        path = tmp_path / "model.onnx"
        write(path, *matrices, int8=int8)
        told, _ = stored(path, *codes)
        assert list(told["codes"]) == [f"w0{suffix}", f"w1{suffix}"] and told["bitmaps"] == {}
        assert told["dense"] == {f"w2{suffix}": matrices[2].size * (1 if int8 else 4)}


def test_one_bit_off_is_another_matrix(tmp_path: Path) -> None:
    weight = of_bits(3)
    codes, path = Centroids(3).found(weight), tmp_path / "model.onnx"
    weight.view(np.int32)[7, 7] += 1
    write(path, weight)
    before = path.read_bytes()
    assert stored(path, codes)[0]["dense"] == {"w0": weight.nbytes}
    assert path.read_bytes() == before


def test_negative_zeros_and_the_smallest_numbers_are_kept(tmp_path: Path) -> None:
    weight = weights(0.9)
    weight[0, :4] = -0.0, 1e-45, -1e-40, np.float32(3e38)
    path = tmp_path / "model.onnx"
    write(path, weight)
    assert list(stored(path)[0]["bitmaps"]) == ["w0"]


CODES: dict[str, list[Codes]] = {}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """fp32 graphs whose matrices are of 4 bits."""
    folder = tmp_path_factory.mktemp("graphs")
    files = {}
    for name, path in write_graphs(folder).items():
        model = onnx.load(path)
        CODES[name] = []
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT:
                array = Linear(4, "row").codes(onnx.numpy_helper.to_array(tensor)).decode()
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
                CODES[name].append(Linear(4, "row").found(array))
        files[f"{name} coded"] = folder / f"{name} coded.onnx"
        onnx.save(model, files[f"{name} coded"])
    return files


def products_of(path: Path) -> Any:
    return reading.operations(path), reading.attention(path), reading.layer_count(path)


@pytest.mark.parametrize("scheme", FORMATS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_models_in_every_number_format(
    family: str, scheme: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    """The same answers and the same bytes again. All matrices of a file in fp32 are stored as
    codes, and those in int8 that have one scale for each column; what is known of the file's
    products stays known."""
    coded, codes = graphs[f"{family} coded"], CODES[family]
    files = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for path in files:
        convert(coded, path, candidate(scheme), batches(0), by_token=family != "bert")
        answers, size, products = predict(path, batches(1)), path.stat().st_size, products_of(path)
        told = store(path, codes)
        assert predict(path, batches(1)).tobytes() == answers.tobytes()
        assert products_of(path) == products
        if scheme in ("fp32", "int8-dynamic", "int8-static"):
            assert path.stat().st_size < 0.75 * size
            assert all(size <= 4096 for size in told["dense"].values())
    assert files[0].read_bytes() == files[1].read_bytes()
