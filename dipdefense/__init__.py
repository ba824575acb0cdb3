"""Deep Image Prior as a preprocessing defence against adversarial images."""

from dipdefense.config import DIPConfig
from dipdefense.purifier import DIPPurifier
from dipdefense.reconstruct import Reconstruction, reconstruct

__all__ = ["DIPConfig", "DIPPurifier", "Reconstruction", "reconstruct"]
__version__ = "0.1.0"
