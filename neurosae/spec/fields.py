"""What the schemas are made of: the strict record, and the types of its fields.

Every refusal is raised with its place, so that `load` can find the line. Field types never convert: a number is no
word, a word no number, and true is no 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from neurosae.errors import nearest
from neurosae.spec.words import Problem, describe, file_problem, key_problem, name_problem, text_problem


def _refusal(text: str, where: tuple[str | int, ...] = ()) -> PydanticCustomError:
    return PydanticCustomError("refused", "{text}", {"text": text, "where": where})


def fail(*where: str | int, text: str) -> NoReturn:
    """Refuse from inside a validator, pointing at a place below the value that is being validated."""
    raise _refusal(text, where)


def fail_all(problems: Iterable[Problem]) -> None:
    """Refuse from inside a validator when there are problems; the reader hears of the first one in the file."""
    found = [InitErrorDetails(type=_refusal(text), loc=where, input=None) for where, text in problems]
    if found:
        raise ValidationError.from_exception_data("record", found)


class Strict(BaseModel):
    """Base of every record that is read from YAML: frozen, and an unknown key is refused with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(data, cls):
            return data
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        if not isinstance(data, Mapping):
            fail(text=f"is {describe(data)}; write a mapping of {', '.join(fields)}.")
        fail_all(((str(key),), unknown_key(str(key), fields)) for key in data if key not in fields)
        for key, field in fields.items():
            if field.is_required() and key not in data:
                about = field.description or "write it"
                fail(key, text=f"is missing; {about[0].lower()}{about[1:].rstrip('.')}.")
        if info.context is not None:  # read from a file, where an empty key is a forgotten one
            fail_all(((str(key),), "is empty; fill it in, or leave the key out.") for key in data if data[key] is None)
        return data


def unknown_key(key: str, known: Iterable[str]) -> str:
    """One sentence about a key that a schema does not have.

    Examples
    --------
    >>> unknown_key("n_permutation", ["alpha", "n_permutations"])
    "unknown key. Did you mean 'n_permutations'?"
    >>> unknown_key("seed", ["alpha", "n_permutations"])
    'unknown key. Known: alpha, n_permutations.'
    """
    names = list(known)
    hint = nearest(key, names)
    return f"unknown key. Did you mean '{hint}'?" if hint else f"unknown key. Known: {', '.join(names)}."


def _no_repeats(value: tuple[Any, ...]) -> tuple[Any, ...]:
    for i, entry in enumerate(value):
        if entry in value[:i]:
            fail(i, text=f"names '{entry}' twice; name it once.")
    return value


def refusing(problem: Callable[[Any], str | None]) -> BeforeValidator:
    """A validator from a function that says what is wrong with a value, or None."""

    def validate(value: Any) -> Any:
        if text := problem(value):
            fail(text=text)
        return value

    return BeforeValidator(validate)


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _one_at_least(value: tuple[Any, ...]) -> tuple[Any, ...]:
    return value or fail(text="is an empty list; write one entry at least.")


def _pair_problem(value: Any) -> str | None:
    if isinstance(value, list | tuple) and len(value) == 2:
        return None
    given = (
        f"has {len(value)} {'entry' if len(value) == 1 else 'entries'}"
        if isinstance(value, list | tuple)
        else f"is {describe(value)}"
    )
    return f"{given}; write two, in brackets: [first, last]."


Text = Annotated[str, refusing(text_problem)]
Name = Annotated[str, refusing(name_problem)]
Key = Annotated[str, refusing(key_problem)]
FileName = Annotated[str, refusing(file_problem)]
Int = Annotated[int, Field(strict=True)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Bool = Annotated[bool, Field(strict=True)]
IntPair = Annotated[tuple[Int, Int], refusing(_pair_problem)]
NamePair = Annotated[tuple[Name, Name], refusing(_pair_problem)]
OneOrMore = Annotated[
    tuple[Text, ...],
    BeforeValidator(_to_tuple, json_schema_input_type=str | list[str]),
    AfterValidator(_one_at_least),
    AfterValidator(_no_repeats),
]
"""One word, or a list of different words; always kept as a tuple."""
Names = Annotated[tuple[Name, ...], AfterValidator(_no_repeats)]
"""A list of different names."""
