"""Rendering of evaluations: text for a terminal, Markdown, and self-contained HTML pages."""

from .conclusion import conclude
from .html import render_comparison, render_report, render_summary
from .markdown import comparison_markdown, report_markdown
from .summary import headline, summary

__all__ = [
    "comparison_markdown",
    "conclude",
    "headline",
    "render_comparison",
    "render_report",
    "render_summary",
    "report_markdown",
    "summary",
]
