"""Lets the registry's torchvision, whose operators are CUDA's, be imported beside a CPU torch."""

import importlib.util
from pathlib import Path

DECLARED = """
_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

(folder,) = importlib.util.find_spec("torchvision").submodule_search_locations
module = Path(folder) / "_meta_registrations.py"
source = module.read_text()
if DECLARED not in source:
    module.write_text(source.replace("import torch\n", f"import torch\n{DECLARED}", 1))
