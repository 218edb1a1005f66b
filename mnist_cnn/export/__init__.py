"""Files for other programs, made from a trained network: ONNX, .pt2, and a page to draw on."""
