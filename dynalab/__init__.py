"""dynalab: measure, simulate and size tiered, disaggregated LLM serving.

Importing the package is cheap: every sub-package is imported where it is used.
"""

from __future__ import annotations

__version__ = "0.1.0"
