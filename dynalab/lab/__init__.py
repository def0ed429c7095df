"""The laboratory: notebooks run as reports, plots in one style, results that say where they came from.

Nothing is imported here. Notebook authors use :func:`dynalab.lab.style.use_style`,
:func:`dynalab.lab.provenance.stamp` and :func:`dynalab.lab.provenance.save_dataset`; the command line uses
:func:`dynalab.lab.report.build_report`.
"""

from __future__ import annotations
