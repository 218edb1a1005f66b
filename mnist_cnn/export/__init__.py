"""Files that use a trained network without PyTorch: ONNX, and a page to draw on."""
