"""Damaged and hostile ONNX files end in one sentence, and nothing outside their folder is read."""

import contextlib
import random

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper

import jaxtransfer as jt
from support.onnx_models import IR_VERSION, model, node, normal, save


def small():
    nodes = [
        node("Conv", "x", "w", "b", outputs=["c"], pads=[1, 1, 1, 1]),
        node("Relu", "c", outputs=["r"]),
        node("ReduceMean", "r", "axes", outputs=["m"], keepdims=0),
        node("Gemm", "m", "head"),
    ]
    weights = {"w": normal(4, 3, 3, 3), "b": normal(4), "axes": np.array([2, 3]), "head": normal(4, 5)}
    return model(nodes, weights)


def refused(made, tmp_path, sentence, **arguments):
    with pytest.raises(jt.JaxTransferError, match=sentence):
        jt.from_onnx(save(made, tmp_path / "net.onnx"), name="net", **arguments)


def test_what_is_not_an_onnx_file(tmp_path):
    file = tmp_path / "net.onnx"
    with pytest.raises(jt.JaxTransferError, match=r"net\.onnx: this is not a file"):
        jt.from_onnx(file, name="net")
    data = small().SerializeToString()
    for content in (b"", b"PK\x03\x04", b"\x00" * 100, data[:-40], data[: len(data) // 2], data[:20]):
        file.write_bytes(content)
        with pytest.raises(jt.JaxTransferError, match=r"net\.onnx: "):
            jt.from_onnx(file, name="net")


def test_graphs_that_make_no_sense(tmp_path):
    relu = node("Relu", "x", outputs=["a"])
    refused(model([node("Add", "y", "x", outputs=["a"]), node("Relu", "a")]), tmp_path, "a cycle")
    refused(model([relu, relu, node("Relu", "a")]), tmp_path, "computes the value 'a' twice")
    refused(model([node("Relu", "nothing")]), tmp_path, "reads the value 'nothing'")
    refused(
        model([node("Frobnicate", "x")]), tmp_path, "Frobnicate at 'Frobnicate of y' cannot be used: it is not supp"
    )
    refused(model([node("Relu", "x", domain="com.example")]), tmp_path, "operators of 'com.example' are not ONNX's")
    refused(model([node("Conv", "x", "w")], {"w": normal(4, 5, 3, 3)}), tmp_path, "Conv at 'Conv of y' cannot be used")
    refused(model([node("Relu", "x")], opset=3), tmp_path, "opset 3; supported are 7 to 25")
    refused(model([node("Relu", "x", "x", "x")]), tmp_path, "Relu at 'Relu of y' cannot be used")
    refused(model([node("Relu", "x")], outputs=("z",)), tmp_path, "There is no value or node 'z'")
    refused(
        model([node("Relu", "x", what=helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]))]), tmp_path, "cannot be"
    )
    made = small()
    made.graph.initializer.append(made.graph.initializer[0])
    refused(made, tmp_path, "two weights with the name 'w'")


def test_inputs_that_are_no_images(tmp_path):
    relu = [node("Relu", "x")]
    refused(model(relu, image=("N", 3, 8)), tmp_path, "one input of four axes")
    refused(model(relu, image=("N", 7, 8, 8)), tmp_path, "neither axis has 1, 3 or 4 channels")
    refused(model(relu, kind=TensorProto.INT64), tmp_path, "does not hold floats")
    refused(model(relu, image=(4, 3, 8, 8)), tmp_path, "batches of exactly 4 images")
    refused(model(relu, image=("N", 3, "h", "w")), tmp_path, r"any size: choose one with size=\(height, width\)")
    refused(model(relu), tmp_path, "8 x 8 pixels, not of 9 x 8", size=(9, 8))
    refused(model(relu, image=("N", 3, "h", "w")), tmp_path, "from 1 to 8192 pixels", size=(10**6, 8))
    more = [helper.make_tensor_value_info("style", TensorProto.FLOAT, [3])]
    made = model([node("Relu", "x", outputs=["a"]), node("Add", "a", "style")], inputs=more)
    refused(made, tmp_path, "the input 'style' has no value")
    assert jt.from_onnx(tmp_path / "net.onnx", name="net", representation="a").params == {}


def test_tensors_hold_what_they_declare(tmp_path):
    made = small()
    made.graph.initializer[0].dims[0] = 10**6
    refused(made, tmp_path, "the tensor w declares the shape")
    made.graph.initializer[0].dims[:] = [2**40, 2**40]
    refused(made, tmp_path, "declares weights of .* bytes, too much")
    made.graph.initializer[0].dims[:] = [-1, 3]
    refused(made, tmp_path, r"the tensor w has the shape \(-1, 3\)")
    made = small()
    made.graph.initializer[0].data_type = TensorProto.STRING
    refused(made, tmp_path, "has values of ONNX's type 8")
    made = small()
    made.graph.initializer[1].raw_data = np.full(4, np.nan, np.float32).tobytes()
    refused(made, tmp_path, "the weight b holds values that are not finite")


def test_constants_of_any_size_are_not_made(tmp_path):
    huge = {"n": np.array([10**6, 10**6])}
    mean = [node("ReduceMean", "c", outputs=["m"]), node("Add", "x", "m")]
    refused(model([node("ConstantOfShape", "n", outputs=["c"]), *mean], huge), tmp_path, "is too large")
    refused(
        model([node("Tile", "one", "n", outputs=["c"]), *mean], huge | {"one": np.ones((1, 1))}), tmp_path, "too large"
    )
    refused(
        model([node("Expand", "one", "n", outputs=["c"]), *mean], huge | {"one": np.ones((1, 1))}),
        tmp_path,
        "too large",
    )
    ends = {"a": np.int64(0), "b": np.int64(2**60), "d": np.int64(1)}
    refused(model([node("Range", "a", "b", "d", outputs=["c"]), *mean], ends), tmp_path, "is too large")
    doubled = [node("Concat", f"c{i}", f"c{i}", outputs=[f"c{i + 1}"], axis=0) for i in range(64)]
    nodes = [*doubled, node("ReduceMean", "c64", outputs=["m"]), node("Add", "x", "m")]
    refused(model(nodes, {"c0": normal(1)}), tmp_path, "is too large")
    nodes = [node("Resize", "x", "", "", "n", axes=[2, 3])]
    refused(model(nodes, {"n": np.array([10**9, 10**9])}, opset=19), tmp_path, "is too large")
    nodes = [node("Pad", "x", "p")]
    refused(model(nodes, {"p": np.array([0, 0, 0, 0, 0, 0, 2**30, 2**30])}), tmp_path, "cannot be used")


def external(made, **entries):
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return made


def test_weights_in_other_files_stay_in_the_folder(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    weight = normal(4, 3, 3, 3)
    (folder / "weights").write_bytes(b"1234" + weight.tobytes())
    (tmp_path / "secret").write_bytes(weight.tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    network = jt.from_onnx(save(external(small(), location="weights", offset=4), folder / "net.onnx"), name="net")
    np.testing.assert_array_equal(network.params["w"], weight.transpose(2, 3, 1, 0))
    for location in ("../secret", str(tmp_path / "secret"), "a/../../secret", "..", "", "C:\\secret"):
        refused(external(small(), location=location), folder, "not inside the folder")
    for location in ("link", "up/secret"):
        refused(external(small(), location=location), folder, "which is a link")
    for entries in ({"offset": 5}, {"offset": -1}, {"length": 10}, {"offset": 2**70}, {"location": "none"}):
        refused(external(small(), **({"location": "weights"} | entries)), folder, "missing or too short")
    refused(external(small(), location="weights", offset="x"), folder, "cannot be read")


def nested(depth):
    graph = helper.make_graph([node("Relu", "x", outputs=["z"])], "g", [], [helper.make_empty_tensor_value_info("z")])
    for _ in range(depth):
        inner = node("If", "c", outputs=["z"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([inner], "g", [], [helper.make_empty_tensor_value_info("z")])
    return graph


def test_graphs_inside_graphs_have_a_limit(tmp_path):
    made = model([node("If", "c", then_branch=nested(2), else_branch=nested(0))], {"c": np.array(True)})
    x = normal(2, 8, 8, 3)
    network = jt.from_onnx(save(made, tmp_path / "net.onnx"), name="net")
    np.testing.assert_array_equal(network.apply(network.params, x), np.maximum(x, 0))
    deep = nested(0)
    for _ in range(25):
        inner = node("If", "c", outputs=["z"], then_branch=deep)
        deep = helper.make_graph([inner], "g", [], [helper.make_empty_tensor_value_info("z")])
    refused(model([node("If", "c", then_branch=deep)], {"c": np.array(True)}), tmp_path, "nested more than 20 deep")


def function(name, *calls):
    nodes = [helper.make_node(call, ["a"], ["a" + str(i)], domain="local") for i, call in enumerate(calls)]
    nodes.append(helper.make_node("Relu", ["a"], ["b"]))
    return helper.make_function(
        "local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    )


def with_functions(*functions, call):
    made = model([helper.make_node(call, ["x"], ["y"], domain="local")])
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.functions.extend(functions)
    made.ir_version = IR_VERSION
    return made


def test_functions_are_put_in_place_within_bounds(tmp_path):
    made = with_functions(function("inner"), function("outer", "inner"), call="outer")
    network = jt.from_onnx(save(made, tmp_path / "net.onnx"), name="net")
    x = normal(2, 8, 8, 3)
    np.testing.assert_array_equal(network.apply(network.params, x), np.maximum(x, 0))
    refused(
        with_functions(function("inner", "outer"), function("outer", "inner"), call="outer"), tmp_path, "calls itself"
    )
    bomb = [function(f"f{i}", *[f"f{i + 1}"] * 10) for i in range(15)]
    refused(with_functions(*bomb, function("f15"), call="f0"), tmp_path, "more than 100,000 nodes")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_never_end_in_another_error(seed, tmp_path):
    """A small part of what `benchmarks/fuzz_onnx.py` tries."""
    data, chance = bytearray(small().SerializeToString()), random.Random(seed)
    file = tmp_path / "net.onnx"
    for _ in range(30):
        damaged = bytearray(data)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged)
        with contextlib.suppress(jt.JaxTransferError):
            assert isinstance(jt.from_onnx(file, name="net"), jt.Network)
