"""``art-robust certify``: proofs for a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..experiments.evaluation_plans import EvaluationPlan
from .arguments import DeviceOption, NetworkArgument, NetworkOptions, select_device
from .derived import FieldOption, take_settings

CERTIFICATION = (
    FieldOption(
        EvaluationPlan,
        "points",
        help="Number of test images, the first ones; all by default.",
        min=1,
        kind=int | None,
        default=None,
    ),
    FieldOption(EvaluationPlan, "batch_size", help="Number of images in a forward pass.", min=1),
)


@take_settings(CERTIFICATION)
def certify(
    run: NetworkArgument,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radius in the units of the input, such as 0.5 or 36/255; repeatable. By default that of the run's "
            "training."
        ),
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="L2, L1 or Linf; by default that of the run's training, or L2.")
    ] = None,
    network: NetworkOptions = NetworkOptions(),
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the certificate; by default one in the run's, or in runs/NAME."),
    ] = None,
    **settings: Any,
) -> None:
    """Prove within which radius each prediction of a trained network cannot change, from its Lipschitz constants.

    Writes certificate.json (accuracies, the bound of each layer) and radii.safetensors (each image's radius).

    Example: art-robust certify runs/bang --norm L2 --eps 0.5 --eps 1.0
    """
    select_device(device)
    # These import torch and ART, which the help does without.
    from rich.table import Table

    from ..experiments.runs import CERTIFICATE_FILE, CERTIFICATES, RADII_FILE, certify_classifier
    from ..terminal import console
    from .running import check_alone, check_output
    from .targets import choose_threats, load_target

    check_alone("certify")
    if out is not None:
        check_output("--out", out, (CERTIFICATE_FILE, RADII_FILE))
    target = load_target(run, network)
    # Proofs are in L2: radii without a norm are meant so, whatever the training's.
    threats, source = choose_threats(target, "L2" if eps and norm is None else norm, eps or [], default="L2")
    norm, radii = threats[0].norm, eps or [f"{threats[0].eps:g}"]
    if out is None:
        check_output("--out", target.home / CERTIFICATES, ())
    if source:
        console.print(f"Threat: {threats[0]}, {source}.")
    images = len(target.data.x_test[: settings["points"]])
    name = "-".join([norm, *radii, Path(target.data.name).stem, str(images)]).replace("/", "_")
    folder = out or target.home / CERTIFICATES / name
    summary, bound = certify_classifier(target.classifier, target.data, threats, folder, **settings)
    console.print(str(bound), markup=False, highlight=False, soft_wrap=True)
    table = Table("radius", f"certified accuracy of {images} points")
    table.add_row("0", f"{summary['clean_accuracy']:.2%} (clean)")
    for certified in summary["certified_accuracy"]:
        table.add_row(f"{norm} {certified['eps']:g}", f"{certified['accuracy']:.2%}")
    console.print(table)
    if norm == "Linf":
        console.print("These Linf radii are L2 radii over the root of the number of features, which is loose.")
    console.print(str(folder / CERTIFICATE_FILE), soft_wrap=True)
