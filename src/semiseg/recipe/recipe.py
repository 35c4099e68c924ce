"""The recipe of a run, complete and validated."""

from dataclasses import dataclass, replace
from typing import Any

from semiseg import optim
from semiseg.data.dataset import DataConfig
from semiseg.method import MethodConfig
from semiseg.models import build
from semiseg.recipe.engine import EngineConfig, PrecisionSetting


@dataclass(frozen=True)
class Recipe:
    """The five sections of a recipe."""

    data: DataConfig
    model: build.Config
    method_name: str
    method: MethodConfig
    optim: optim.Config
    engine: EngineConfig

    @property
    def of_labels(self) -> dict[str, Any]:
        """Returns the method's settings of labeled images, as plain values. Every method has them."""
        return self.method.model_dump(mode="json", include={*MethodConfig.model_fields})

    @property
    def counts_classes(self) -> bool:
        """Returns whether training must know how many pixels of each class each labeled mask has."""
        weights = self.method.labeled_loss.class_weights
        return self.data.labeled_order == "class_balanced" or weights == "inverse_sqrt"

    def computed_in(self, precision: PrecisionSetting) -> "Recipe":
        """Returns the recipe with this precision in place of `auto`. A resumed run keeps the precision of its start."""
        return replace(self, engine=self.engine.model_copy(update={"precision": precision}))

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain values, section by section. Loading them gives an equal recipe."""
        return {
            "data": self.data.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "method": {"name": self.method_name, **self.method.model_dump(mode="json")},
            "optim": self.optim.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json"),
        }
