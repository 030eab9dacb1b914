"""bnfold as a pass of an Olive workflow.

    python examples/recipes/olive_pass.py [MODEL.onnx]

Needs olive-ai. Olive takes passes of others from a package configuration: the class below, by its module's name. As a
command: `olive run --config workflow.json --package-config passes.json`, with this file on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

import bnfold

SAMPLE = Path(__file__).resolve().parents[2] / "sample_models" / "digits_preact.onnx"


class FoldBatchNormalization(Pass):
    """Removes BatchNormalization; refuses a model rather than change what it computes."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {
            "skip": PassConfigParam(type_=list, default_value=[], description="Patterns of BN that stay."),
            "merge": PassConfigParam(type_=bool, default_value=True, description="Make one Conv of parallel branches."),
        }

    def _run_for_config(self, model: ONNXModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        target = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        bnfold.fold(model.model_path, skip=config.skip, merge=config.merge).save(target, overwrite=True)
        return ONNXModelHandler(model_path=target)


def package(folder: Path) -> Path:
    """Olive's own passes, and this one."""
    known = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text("utf-8"))
    everywhere = {"supported_providers": ["*"], "supported_accelerators": ["*"], "supported_precisions": ["*"]}
    mine = {"module_path": f"{Path(__file__).stem}.FoldBatchNormalization", **everywhere}
    known["passes"]["FoldBatchNormalization"] = mine
    target = folder / "passes.json"
    target.write_text(json.dumps(known), encoding="utf-8")
    return target


def main() -> None:
    import olive

    sys.path.insert(0, str(Path(__file__).parent))
    model = sys.argv[1] if len(sys.argv) > 1 else str(SAMPLE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workflow = {
            "input_model": {"type": "OnnxModel", "model_path": model},
            "passes": {"fold": {"type": "FoldBatchNormalization"}, "fp16": {"type": "OnnxFloatToFloat16"}},
            "output_dir": str(folder / "out"), "cache_dir": str(folder / "cache"), "log_severity_level": 3,
        }  # fmt: skip
        olive.run(workflow, package_config=str(package(folder)))
        before, after = (bnfold.inspect(path) for path in (model, next((folder / "out").rglob("*.onnx"))))
        print(f"BN {before.before.batch_norms} → {after.before.batch_norms}, "
              f"weights {before.facts.weights_bytes} → {after.facts.weights_bytes} bytes")  # fmt: skip


if __name__ == "__main__":
    main()
