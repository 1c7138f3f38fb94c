"""How evaluations look: text for a terminal, Markdown, and HTML pages that need no other file."""

from .html import render_comparison, render_report
from .markdown import comparison_markdown, report_markdown
from .summary import summary

__all__ = ["comparison_markdown", "render_comparison", "render_report", "report_markdown", "summary"]
