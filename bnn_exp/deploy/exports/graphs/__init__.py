"""The graphs of ONNX and QONNX files."""
