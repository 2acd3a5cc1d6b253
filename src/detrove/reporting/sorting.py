"""The one script that a page may carry: a click on a column's head sorts its table."""

from __future__ import annotations

import base64
import hashlib

SORTING = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const value = row => row.cells[column].dataset.value;
    const numbers = rows.every(row => value(row) === undefined || !isNaN(value(row)));
    const first = numbers ? "descending" : "ascending", second = numbers ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const difference = numbers ? x - y : x.localeCompare(y);
      return order === "ascending" ? difference : -difference;
    });
    table.tBodies[0].append(...rows);
  }));
}
"""
"""Numbers fall at the first click and rise at the second, words the other way round; a cell without value stays last.
"""


def permission() -> str:
    """What a page's Content-Security-Policy says so that a browser runs this script and no other."""
    digest = base64.b64encode(hashlib.sha256(SORTING.encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'"
