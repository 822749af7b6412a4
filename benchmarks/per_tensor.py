"""Plain dynamic int8 with one scale per tensor for weights and activations, to compare recipes with.

The arithmetic is that of ``onnxruntime.quantization.quantize_dynamic``, by the operator into which its nodes are fused;
that function itself fails on the shapes of the decoder's tied ``Gemm``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from quantize.graph import MICROSOFT, Editor, drop_unused_initializers, replace_output, save_graph
from quantize.output_folder import appearing
from quantize.products import Weights, find_products
from runtime.host.files import sha256_file
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.manifest import MANIFEST, FileSpec, encode_manifest


def per_tensor(parent: Artifact, out: Path) -> Artifact:
    """Write ``parent`` to ``out`` with every matrix product quantized dynamically, one scale per tensor."""
    with appearing(out) as work:
        _write(parent, work)
    return open_artifact(out)


def _write(parent: Artifact, out: Path) -> None:
    for name in parent.manifest.files:
        shutil.copyfile(parent.path / name, out / name)
    for graph in parent.manifest.graphs.values():
        model = ir.load(parent.path / graph.file)
        for product in find_products(model.graph):
            if product.operator not in ("MatMul", "Gemm") or len(product.node.inputs) > 2:
                continue
            matrix = Weights().matrix(product)
            scale = np.abs(matrix).max() / 127
            edit = Editor(model.graph, product.name)
            weight = edit.constant("values", np.rint(matrix / scale).astype(np.int8))
            inputs = [product.x, weight, edit.constant("scale", np.array(scale, np.float32))]
            replace_output(product.node, edit.node("DynamicQuantizeMatMul", inputs, domain=MICROSOFT))
        drop_unused_initializers(model.graph)
        save_graph(model, out / graph.file)
    files = {name: FileSpec(sha256_file(out / name), (out / name).stat().st_size) for name in parent.manifest.files}
    manifest = msgspec.structs.replace(parent.manifest, name=f"{parent.manifest.name}-per-tensor", files=files)
    (out / MANIFEST).write_bytes(encode_manifest(manifest))
