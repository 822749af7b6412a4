"""Graph-level work on ONNX artifacts: saving, external data, and the recipes that make them smaller."""
