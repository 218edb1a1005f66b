"""Files that use a trained network without PyTorch: ONNX, …"""
