"""One way to make a self-contained HTML page: text, tables, charts, pictures. Every report of detrove uses it."""

from detrove.reporting.charts import Series, line_chart
from detrove.reporting.page import Bar, Cell, Page

__all__ = ["Bar", "Cell", "Page", "Series", "line_chart"]
