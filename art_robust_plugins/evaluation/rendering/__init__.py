"""Rendering of evaluations: text for a terminal, Markdown, and self-contained HTML pages."""

from .html import render_comparison, render_report
from .markdown import comparison_markdown, report_markdown
from .summary import summary

__all__ = ["comparison_markdown", "render_comparison", "render_report", "report_markdown", "summary"]
