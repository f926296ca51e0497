"""`report.html`: one page about a run or about many runs, made from run directories. The page works offline.

Nothing here imports torch or matplotlib. Charts are SVG drawings, and the page holds their values as JSON. `script.js`
shows the values under the pointer and sorts tables. Everything else works without the script.
"""

from bnn_exp.records.html.run import run_page, write_run_page
from bnn_exp.records.html.sweep import sweep_page, write_sweep_page

__all__ = ["run_page", "sweep_page", "write_run_page", "write_sweep_page"]
