"""Which columns of a source are the id, the inputs and the label."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from storage.base.settings import Section

SAMPLE_ID, LABEL = "sample_id", "label"

# Words that PyYAML reads as booleans (not y and n), and YAML 1.2 as text unless they are true and false.
_BOOLEAN_WORDS = ("no", "off", "yes", "on", "true", "false")


class Columns(Section):
    """Which columns of a source are what.

    sample_id: integers or text, unique in the whole source.
    inputs: the columns that the model takes, in its argument order; None takes all that are left, but for what
    programs write for themselves, as an index of pandas, and for partitions.
    label: integer classes, one a sample or a list of equal length, as of a sequence's positions; None takes
    'label' when there is one; False leaves labels out.
    """

    sample_id: str = SAMPLE_ID
    inputs: tuple[str, ...] | None = None
    label: str | Literal[False] | None = None

    @field_validator("inputs", mode="before")
    @classmethod
    def _list_of_names(cls, inputs: Any) -> Any:
        if inputs is not None and not isinstance(inputs, list | tuple):
            raise ValueError("Input should be a valid list")  # pydantic would call it a tuple
        return inputs

    @field_validator("label")
    @classmethod
    def _no_word_for_a_boolean(cls, label: str | Literal[False] | None) -> str | Literal[False] | None:
        if isinstance(label, str) and label.lower() in _BOOLEAN_WORDS:
            raise ValueError(
                "is a text and no boolean in YAML 1.2; write false for no labels, or rename the column of this name"
            )
        return label
