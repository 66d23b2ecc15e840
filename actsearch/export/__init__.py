"""A function in the forms in which it leaves actsearch: source, NumPy, sympy and LaTeX, ONNX, torch.export."""
