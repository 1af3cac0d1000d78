"""Settings that a recipe's part is read into."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from storage.base.digest import canonical_json


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments are JSON: text, finite numbers, lists and mappings of text ({error})") from None
    return value


# Arguments count in digests, so they are what JSON can say: no dates, no NaN.
JsonDict = Annotated[dict[str, Any], AfterValidator(_json)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, and nothing changes once it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def more_keys(cls) -> list[str]:
        """Keys that are no fields, for hints; of a key inside a field the dotted one."""
        return []
