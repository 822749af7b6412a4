"""ONNX Runtime: sessions, providers, threads, prepacked graphs, bindings."""
