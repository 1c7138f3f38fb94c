"""The table of a recipe's results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def result_rows(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of a record's table: means over seeds in percent, with the lowest and the highest in parentheses.

    Networks that diverged are counted, but are in no mean. "AutoAttack" is the accuracy under AutoAttack alone; if
    other attacks ran too, "worst case" is that under all of them.
    """
    finished = [result for result in record["results"] if "diverged" not in result]
    rows = []
    for name in dict.fromkeys(result["row"] for result in record["results"]):
        every = [result for result in record["results"] if result["row"] == name]
        runs = [result for result in every if "diverged" not in result]
        lost = f" ({len(every) - len(runs)} diverged)" if len(runs) < len(every) else ""
        row = {"training": name, "seeds": f"{len(every)}{lost}", "clean": _show_percent([run["clean"] for run in runs])}
        for threat in finished[0]["threats"] if finished else ():
            attacked = [run["threats"][threat] for run in finished]
            of_row = [run["threats"][threat] for run in runs]
            with_autoattack = attacked[0]["autoattack"] is not None
            if with_autoattack:
                row[f"AutoAttack, {threat}"] = _show_percent([found["autoattack"] for found in of_row])
            if any(found["robust"] != found["autoattack"] for found in attacked):
                what = "worst case" if with_autoattack else "attacked"
                row[f"{what}, {threat}"] = _show_percent([found["robust"] for found in of_row])
        for noise in finished[0]["noise"] if finished else ():
            row[noise] = _show_percent([run["noise"][noise] for run in runs])
        for radius in finished[0]["certified"] if finished else ():
            shares = [run["certified"][radius] for run in runs]
            row[f"certified, {radius}"] = "no bound" if None in shares else _show_percent(shares)
        flags = [{flag for found in run["threats"].values() for flag in found["flags"]} for run in runs]
        counted = {flag: sum(flag in each for each in flags) for each in flags for flag in sorted(each)}
        row["flags (networks)"] = ", ".join(f"{flag} ({count})" for flag, count in counted.items()) or "none"
        row["training, s"] = f"{statistics.mean(run['training_seconds'] for run in runs):.0f}" if runs else "none"
        rows.append(row)
    return rows


def _show_percent(shares: Sequence[float]) -> str:
    if not shares:
        return "none"
    values = [100 * share for share in shares]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
