"""Settings: parts of a recipe, and the objects that code takes them as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from storage.base.digest import canonical_json
from storage.base.errors import RecipeError
from storage.base.section_errors import explain


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments are JSON: text, finite numbers, lists and mappings of text ({error})") from None
    return value


# Arguments count in digests, so they are what JSON can say: no dates, no NaN.
JsonDict = Annotated[dict[str, Any], AfterValidator(_json)]


class Section(BaseModel):
    """Settings that are checked when they are made, from a recipe or by a call, and do not change afterwards.

    Unknown keys are errors. A call such as `Reading(threads=0)` raises RecipeError; `model_validate` raises pydantic's
    ValidationError, which `jobs.recipe` explains with the recipe's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise RecipeError(explain(error, type(self), type(self).__name__)) from None

    # pydantic's mark of BaseModel's own __init__: a section inside another one is validated without a call of it, so
    # that its mistakes are reported with those of the outer one, under their whole keys.
    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]

    @classmethod
    def read(cls, settings: Mapping[str, Any], key: str) -> Self:
        """The section that a mapping describes. key: the section's own, for errors. Raises RecipeError."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise RecipeError(explain(error, cls, key)) from None

    @classmethod
    def more_keys(cls) -> list[str]:
        """Keys that are no fields, for hints; of a key inside a field the dotted one."""
        return []
