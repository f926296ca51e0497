"""`report.html`: one page about a run or about many runs, made from run directories. The page works without a network.

Nothing here imports torch or matplotlib. Charts are SVG, with their values beside them as JSON. `script.js` shows the values
under the pointer and sorts tables; without the script the rest of the page works.
"""

from bnn_exp.records.html.run import run_page, write_run_page
from bnn_exp.records.html.sweep import sweep_page, write_sweep_page

__all__ = ["run_page", "sweep_page", "write_run_page", "write_sweep_page"]
