"""ONNX models in torch: train the graph itself, and put the trained weights back into the file.

    import bnfold.torch

    module = bnfold.torch.to_module("model.onnx").train()
    ...                                                       # any training loop
    trained = bnfold.torch.write_back("model.onnx", module)   # an onnx.ModelProto: onnx.save(trained, ...)

Needs torch: pip install 'bnfold[torch]'. What it computes, and how: docs/torch.md.
"""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ImportError("bnfold.torch needs torch: pip install 'bnfold[torch]'")

from bnfold.torch.module import OnnxModule, to_module
from bnfold.torch.write_back import save_back, write_back

__all__ = ["OnnxModule", "save_back", "to_module", "write_back"]
