"""What every section of the configuration has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LearningRate = Annotated[float, Field(gt=0.0, le=10.0)]


class Section(BaseModel):
    """Frozen, and unknown keys are errors: a misspelt key must not run with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
