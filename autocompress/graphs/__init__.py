"""The one door to ONNX: export, graphs read and edited, onnxruntime."""
