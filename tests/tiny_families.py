"""A tiny model of every kind that a family loads.

python -m tests.tiny_families FOLDER     makes them all in FOLDER, for the debug configs
"""

import sys
from collections.abc import Callable
from pathlib import Path

from tests.tiny_flow_models import make_tiny_auraflow, make_tiny_flux, make_tiny_sd3
from tests.tiny_models import make_tiny_sd, make_tiny_sdxl, make_tiny_sdxl_refiner

TINY: dict[str, Callable[[Path], Path]] = {
    "sd15": make_tiny_sd,
    "sdxl": make_tiny_sdxl,
    "sdxl-refiner": make_tiny_sdxl_refiner,
    "sd3": make_tiny_sd3,
    "flux": make_tiny_flux,
    "auraflow": make_tiny_auraflow,
}
"""What stands before the hyphen is the family's ``kind``."""

if __name__ == "__main__":
    for name, make in TINY.items():
        print(make(Path(sys.argv[1]) / name))
