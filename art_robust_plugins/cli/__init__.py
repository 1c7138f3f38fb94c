"""The command line: ``art-robust``, a file a command."""

from . import benchmark, certify, demo, evaluate, export, methods, report, train
from .app import app, main

for command in (
    methods.methods,
    demo.demo,
    train.train,
    evaluate.evaluate,
    certify.certify,
    export.export,
    report.report,
    benchmark.benchmark,
):
    app.command()(command)

__all__ = ["app", "main"]
