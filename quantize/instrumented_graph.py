"""Graphs run as they lie in the artifact, with inner values as further outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from quantize.graph import load_graph
from runtime.engines.base import Probe
from runtime.ort.threads import usable_cores

Arrays = dict[str, npt.NDArray[Any]]


class InstrumentedGraph:
    """A float graph on the CPU whose inner ``taps`` can be read, and to whose ``pushed`` values something is added."""

    def __init__(self, path: Path, taps: list[str], pushed: list[str] | None = None) -> None:
        """Open a graph.

        Args:
            path: the graph; its external data stay where they are.
            taps: names of values to be read.
            pushed: names of values to which :meth:`run` can add an array.
        """
        model = load_graph(path)
        values = {value.name: value for node in model.graph for value in node.outputs}
        self._fed = {value.name or "" for value in model.graph.inputs}
        self._pushes: Arrays = {}
        for name in pushed or ():
            value = values[name]
            extra = ir.Value(name=f"push:{name}", type=ir.TensorType(ir.DataType.FLOAT))  # of any shape
            node = ir.Node("", "Add", [value, extra], name=f"push:{name}/Add")
            node.outputs[0].name = f"push:{name}/sum"
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            if value.is_graph_output():
                value.name, node.outputs[0].name = f"{name}/before", name
            ir.convenience.replace_all_uses_with(value, node.outputs[0], replace_graph_outputs=True)
            node.replace_input_with(0, value)
            model.graph.inputs.append(extra)
            model.graph.append(node)
            self._pushes[extra.name or ""] = np.zeros((1, 1), np.float32)
        already = {value.name for value in model.graph.outputs} | self._fed
        model.graph.outputs.extend(values[name] for name in dict.fromkeys(taps) if name not in already)
        model.graph.sort()
        options = ort.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = 3
        # The graph comes as bytes, so that nothing is written beside the parent; its weights are found by this.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, probe: Probe, names: list[str], push: Arrays | None = None) -> Arrays:
        """Values ``names`` (outputs or taps) for ``probe``, with ``push`` added to inner values."""
        feeds = probe.feeds | self._pushes | {f"push:{name}": array for name, array in (push or {}).items()}
        inner = [name for name in names if name not in self._fed]
        fed = {name: probe.feeds[name] for name in names if name in self._fed}
        return fed | dict(zip(inner, self._session.run(inner, feeds), strict=True))
