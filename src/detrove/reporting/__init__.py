"""One way to make a self-contained HTML page: text, tables, charts, pictures. Every report of detrove uses it."""

from detrove.reporting.charts import Series, bar_chart, line_chart
from detrove.reporting.page import Bar, Cell, Number, Page

__all__ = ["Bar", "Cell", "Number", "Page", "Series", "bar_chart", "line_chart"]
