"""Makes `import torchvision` work beside a CPU-only torch.

The registry's torchvision wheel is linked against CUDA. Beside a CPU-only torch its C library does not load, and
`import torchvision` stops with "operator torchvision::nms does not exist"; Lightning and torchmetrics import
torchvision when it is installed, and stop too. Defining the two missing operator schemas is enough: models, transforms
and datasets are plain Python. On a pair that matches this does nothing. Importing this module is what does it: import
it before anything that may import torchvision.
"""

from __future__ import annotations

import sys
import warnings

_library = None  # a torch.library.Library lives as long as it is referenced


def make_importable() -> None:
    """Import torchvision, defining the schemas of its compiled operators first if its C library did not load."""
    global _library
    if "torchvision" in sys.modules:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            import torch

            for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
                del sys.modules[name]
            _library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision  # noqa: F401
        except ImportError:
            return  # not installed: whoever needs it will say so


make_importable()
