"""How a gate is trained, as a value, and what it is asked afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from sinklens.errors import GateError
from sinklens.selection.gate import Shape
from sinklens.values import Value
from sinklens.values.exact import Range
from sinklens.values.kinds import AtLeastZero, Count, Rate, Seed

Loss = Literal["kl", "ce"]
Positive = Annotated[float, Range(0, above=True)]
SMALL = 2_000_000  # parameters of a model that is trained on in seconds
SHAPE = Shape()
LOGGED = (0.1, 0.25, 0.5, 0.75)


@dataclass(frozen=True, repr=False)
class Recipe(Value):
    """How a gate is trained. What is None is chosen for the model (`for_model`).

    loss = fidelity + penalty * (kept share - rate)^2

    Attributes:
        shape: The gate.
        updates: Steps of Adam.
        batch: Rows of each.
        length: Tokens of a row, at most.
        lowest: Rates are drawn uniformly from (lowest, 1], one for each update.
        loss: "kl": KL divergence of the frozen model's predictions from those under the gate, in nats per position;
            "ce": cross-entropy of the true tokens under the gate.
        penalty: Of the squared difference between the share that was kept and the rate.
        calibrated: After the last update, move each layer's threshold at each rate of `gate.GRID` so that the share
            that is kept on training texts meets the rate there. Only with `per_layer`.
        per_layer: The difference is that of each layer, averaged; otherwise that of the mean over layers.
        temperature: Of the sigmoid through which gradients reach the scores.
        rate_of_learning: Of Adam, at its highest (0.5 / d_model); it rises over the first 5 % and falls to a tenth.
        seed: Draws the gate's first weights, texts, masks and rates.

    Raises:
        GateError: a field of the wrong kind, or out of its range.
    """

    shape: Shape = SHAPE
    updates: Count | None = None
    batch: Count | None = None
    length: Annotated[int, Range(4)] | None = None
    lowest: Rate = 0.05
    loss: Loss = "kl"
    penalty: AtLeastZero = 100.0
    calibrated: bool = True
    per_layer: bool = True
    temperature: Positive = 1.0
    rate_of_learning: Positive | None = None
    seed: Seed = 0
    kind_error = GateError

    def __post_init__(self) -> None:
        if self.lowest >= 1:
            raise GateError(f"lowest={self.lowest} must be below 1: rates are drawn from (lowest, 1]")

    def check(self, dlm: Any) -> None:
        """Raise for a recipe that a model, or its outline, cannot follow.

        Raises:
            GateError: rows longer than the model's context, or no layer that would select.
        """
        layers = int(dlm.cfg.n_layers)
        if (self.length or 0) > dlm.n_ctx:
            raise GateError(f"length={self.length}: {dlm.name} knows {dlm.n_ctx} positions")
        if self.shape.first >= layers:
            raise GateError(f"first={self.shape.first}: {dlm.name} has the layers 0 to {layers - 1}; none would select")

    def for_model(self, dlm: Any) -> Recipe:
        """The same with every field said: enough for the bundled models in a minute or two, for 135 million parameters
        in a quarter of an hour.

        Raises:
            GateError: as in `check`.
        """
        self.check(dlm)
        size = sum(weight.numel() for weight in dlm.original_model.parameters())
        updates, batch, length = (800, 32, 48) if size <= SMALL else (400, 4, 96) if size >= 1e8 else (300, 6, 128)
        return replace(
            self,
            updates=self.updates or updates,
            batch=self.batch or batch,
            length=self.length or min(length, dlm.n_ctx),
            rate_of_learning=self.rate_of_learning or 0.5 / int(dlm.cfg.d_model),
        )
