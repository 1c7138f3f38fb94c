"""Lipschitz-margin training (Tsuzuku, Sato, Sugiyama; arXiv 1802.04034; NeurIPS 2018).

With f the logits, K_yi a Lipschitz constant (L2) of f_y - f_i, and l_i = c K_yi (l_y = 0), train on

    f'_i = f_i + a l_i        a = min_i a_i        a_i = (f_y - f_i) / l_i, clipped to [0, 1]

a is a constant in the backward pass; the gradient flows through f and through l. Where the last layer W is linear,
K_yi = L_pre ||w_y - w_i|| with L_pre bounding the network before it (the paper's "++" form); else K_yi = sqrt(2) L,
where the paper writes f'_y = f_y - a l, which is the same under cross-entropy.

Status: the objective is exact. K comes from one warm-started power-iteration step for each linear operator and training
step, on the operator at its true input size; batch normalisation counts with the variance of the current batch. These
are estimates: what is certified afterwards is `PyTorchLipschitzCertifier`'s proven bound. Options beyond the paper are
off by default, and named with their source.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, get_args

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...bridge import device_of, preprocessing_modules
from ...checks import check_choice, check_number, plain_number
from ...lipschitz import LipschitzGraph, batch_variances
from ...lipschitz.preprocessing import find_bounded_network
from ...threat import Norm, ThreatModel
from ..instruments import Instrument
from ..options import TrainingOptions
from ..trainer import RobustTrainer

Margin = Literal["sample", "class"]


def margin_logits(logits: Tensor, y: Tensor, l: Tensor, *, margin: Margin = "sample") -> Tensor:  # noqa: E741
    """The logits f' that are trained on: each other class raised by the share a of l_i that the margin reaches.

    Args:
        logits: f, [N, C].
        y: labels, int64 [N].
        l: l_i = c K_yi >= 0, [N, C]; 0 at the label.
        margin: ``"sample"``, one a for each sample as in the paper, or ``"class"``, each class with its own a_i.

    Returns:
        f' [N, C]; a carries no gradient. Where l_i is 0 the result is f_i, and finite.

    Example:
        >>> f, y = torch.tensor([[3.0, 1.0, 0.5]]), torch.tensor([0])
        >>> margin_logits(f, y, torch.tensor([[0.0, 2.828427, 1.788854]]))
        tensor([[3.0000, 3.0000, 1.7649]])
    """
    with torch.no_grad():
        gap = logits.gather(1, y[:, None]) - logits
        reached = torch.where(gap < l, (gap / l).clamp_min(0), torch.ones_like(gap)).scatter(1, y[:, None], 1)
        a = reached.amin(dim=1, keepdim=True) if margin == "sample" else reached
    return logits + a * l


class LipschitzMarginTrainer(RobustTrainer):
    """Train an ART classifier so that its certified L2 radii grow; certify it with `PyTorchLipschitzCertifier`.

    Args:
        classifier: an ART ``PyTorchClassifier`` with an optimizer, whose network has a Lipschitz bound. Its only
            preprocessing may be a mean and standard deviation and a `WeightMapPreprocessor`, which then counts in the
            bound; where it has joined the optimizer, the bound trains it too.
        c: the L2 radius that is trained for, in the units of the classifier's input; 0 is plain training. The bound
            exceeds the estimate: aim somewhat beyond the radius of interest (2 for 1.58 on MNIST).
        c_warmup_epochs: reach c in this many epochs (a fraction of one is possible), from ``c_start`` linearly, step by
            step; 0 for c from the first step.
        c_start: where the warm-up begins (1e-5 in the paper's SVHN experiment, with c = 1e-2 after 5 epochs).
        margin: ``"sample"`` as in the paper, or ``"class"``: each class is raised by its own a_i l_i rather than by the
            smallest a of the sample (EMMA: Hu, Zou, Wang, Leino, Fredrikson, arXiv 2301.12549, NeurIPS 2023).
        threat: for robust validation accuracy alone.
        instruments: attached to the network while it trains.
        options: see `TrainingOptions`.

    Attributes:
        graph: the network's graph, with the state of the power iterations.

    Raises:
        ValueError: for numbers outside their range, or a c larger than any distance within ``clip_values``; other
            preprocessing, or a map that acts in ``predict`` alone; a network that cannot be traced; labels that are
            not class indices, such as those of mixup.
        NoLipschitzRuleError: (a ValueError) for a network with an operation that has no Lipschitz bound, by name.

    The network is traced when the trainer is made, and anew when its structure has changed since. For a network with
    MinMax activations (GroupSort: Anil, Lucas, Grosse, arXiv 1811.05381, ICML 2019), see `models.MinMax`.

    Nothing in the objective holds the logits down, and the loss of a misclassified sample grows with them: with a large
    c and a constant learning rate, weights and loss may grow without end. A learning rate that falls to 0 helps most,
    then MinMax and a longer training; ``benchmarks/recipes/lipschitz_mnist.toml`` measures what each gives.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        >>> loss = nn.CrossEntropyLoss()
        >>> classifier = PyTorchClassifier(network, loss, (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> x, y = torch.rand(32, 1, 4, 4), torch.randint(0, 3, (32,))
        >>> LipschitzMarginTrainer(classifier, c=0.5, c_warmup_epochs=1).fit(x, y, nb_epochs=2, verbose=False)
    """

    source: ClassVar[str] = "Tsuzuku, Sato, Sugiyama, arXiv 1802.04034, NeurIPS 2018: exact, options beyond it named"
    demo: ClassVar[dict[str, Any]] = {"c": 0.2}

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        c: float = 1.0,
        c_warmup_epochs: float = 0,
        c_start: float = 0.0,
        margin: Margin = "sample",
        threat: ThreatModel | None = None,
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        for name, value in {"c": c, "c_warmup_epochs": c_warmup_epochs, "c_start": c_start}.items():
            check_number(name, value, zero=True)
        check_choice("margin", margin, get_args(Margin))
        self.c: float = plain_number(c)
        self.c_warmup_epochs: float = plain_number(c_warmup_epochs)
        self.c_start: float = plain_number(c_start)
        self.margin = margin
        self._traced: tuple[object, ...] = ()
        super().__init__(classifier, threat=threat, instruments=instruments, options=options)

    @property
    def radii(self) -> dict[str, tuple[Norm, float]]:
        """The larger end of c, and the radius of a threat."""
        name = "c" if self.c >= self.c_start else "c_start"
        return {**super().radii, name: ("L2", max(self.c, self.c_start))}

    @property
    def current_c(self) -> float:
        """The current c."""
        if self.epochs_done >= self.c_warmup_epochs:
            return self.c
        return self.c_start + (self.c - self.c_start) * self.epochs_done / self.c_warmup_epochs

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The classifier's own loss of the logits with the margin."""
        if y.dim() == 2:
            raise ValueError(
                "y: got class probabilities, of which none is the class whose margin counts, expected class indices; "
                "leave out mixup and the like."
            )
        with parametrize.cached(), batch_variances(self.classifier.model) as variances:
            logits = self.logits(x)
            bound = self.graph.estimate(variances, cached=True)
        l = self.current_c * bound.pairwise[y]  # noqa: E741
        return self.loss(margin_logits(logits, y, l, margin=self.margin), y)

    def end_epoch(self, record: dict[str, float]) -> None:
        """Copy the main process's estimate to all processes: batch statistics of their shares make estimates differ."""
        self.copy_from_main_process(self.graph.vectors.values())

    def state_dict(self) -> dict[str, Tensor]:
        """The vectors with which the next power iterations start."""
        return dict(self.graph.vectors)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.graph.vectors.update(state)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the graph, which cannot be pickled: a copy traces its network, from the same vectors."""
        state = {name: value for name, value in super().__getstate__().items() if name != "graph"}
        return {**state, "_traced": (), "_vectors": dict(self.graph.vectors)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        vectors = {name: vector.detach().clone() for name, vector in own.pop("_vectors").items()}
        super().__setstate__(own)
        self.load_state_dict(vectors)

    def prepare(self) -> None:
        super().prepare()
        if self.estimator_module.single:
            raise ValueError(
                "classifier: its network has one output, expected a logit for each class: nn.Linear(1, 2) after it, "
                "with weight [[0], [1]] and bias 0, gives two, for CrossEntropyLoss."
            )
        network, mean_std = find_bounded_network(self.classifier, training=True)
        std = None if mean_std is None else mean_std[1].abs()
        parts: list[nn.Module] = [self.classifier.model, *preprocessing_modules(self.classifier)]
        # The graph reads the current parameters and buffers in each step: only another structure needs another trace.
        structure = (parts, str(network), device_of(network), None if std is None else std.tolist())
        if structure != self._traced:
            self.graph = LipschitzGraph(network, self.classifier.input_shape, std=std)
            self._traced = structure
