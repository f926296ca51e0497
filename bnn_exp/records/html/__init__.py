"""`report.html`: a run, or a study of many, on one page that needs no network, made from run directories alone.

Nothing here imports torch or matplotlib. Charts are SVG with their values beside them as JSON; `script.js` shows those
under the pointer and sorts tables, and without it all else of the page is there.
"""

from bnn_exp.records.html.run import run_page, write_run_page
from bnn_exp.records.html.sweep import sweep_page, write_sweep_page

__all__ = ["run_page", "sweep_page", "write_run_page", "write_sweep_page"]
