"""What runs a network on its input: PyTorch, ONNX Runtime, TensorRT."""
