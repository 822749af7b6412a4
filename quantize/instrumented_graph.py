"""Run a graph of an artifact with inner values as additional outputs and inputs."""

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
    """A float graph on the CPU whose inner values can be read (``taps``) or shifted by an array (``pushed``)."""

    def __init__(self, path: Path, taps: list[str], pushed: list[str] | None = None) -> None:
        """Open a graph.

        Args:
            path: The graph. Its external data are read from where they are.
            taps: Names of inner values to read.
            pushed: Names of inner values to which :meth:`run` can add an array.
        """
        model = load_graph(path)
        values = {value.name: value for node in model.graph for value in node.outputs}
        self._graph_inputs = {value.name or "" for value in model.graph.inputs}
        self._zero_pushes: Arrays = {}
        for name in pushed or ():
            value = values[name]
            addend = ir.Value(name=f"push:{name}", type=ir.TensorType(ir.DataType.FLOAT))  # of any shape
            node = ir.Node("", "Add", [value, addend], name=f"push:{name}/Add")
            node.outputs[0].name = f"push:{name}/sum"
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            if value.is_graph_output():
                value.name, node.outputs[0].name = f"{name}/before", name
            ir.convenience.replace_all_uses_with(value, node.outputs[0], replace_graph_outputs=True)
            node.replace_input_with(0, value)
            model.graph.inputs.append(addend)
            model.graph.append(node)
            self._zero_pushes[addend.name or ""] = np.zeros((1, 1), np.float32)
        existing = {value.name for value in model.graph.outputs} | self._graph_inputs
        model.graph.outputs.extend(values[name] for name in dict.fromkeys(taps) if name not in existing)
        model.graph.sort()
        options = ort.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = 3
        # The graph is passed as bytes, so that nothing is written beside the parent. This entry locates its weights.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, probe: Probe, names: list[str], push: Arrays | None = None) -> Arrays:
        """Run the graph on ``probe`` and return values by name.

        Args:
            probe: Inputs of the graph.
            names: Values to return: outputs, taps or graph inputs.
            push: Arrays to add to inner values, by the names given as ``pushed``.
        """
        feeds = probe.feeds | self._zero_pushes | {f"push:{name}": array for name, array in (push or {}).items()}
        computed = [name for name in names if name not in self._graph_inputs]
        fed = {name: probe.feeds[name] for name in names if name in self._graph_inputs}
        if not computed:  # the session would return all outputs
            return fed
        return fed | dict(zip(computed, self._session.run(computed, feeds), strict=True))
