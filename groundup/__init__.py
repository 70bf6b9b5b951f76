"""Groundup: the classic neural networks, written by hand inside the Hugging Face ecosystem.

Importing it registers every model with the Auto classes, so that
`AutoModelForCausalLM.from_pretrained(...)` finds them without `trust_remote_code`.
"""

from . import models
from .version import __version__

__all__ = ["__version__", "models"]
