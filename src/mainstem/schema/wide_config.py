"""`model.ranking.wide` of the configuration: which combinations the ranking network remembers one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import Field, field_validator

from mainstem.schema.section import Duration, Section

__all__ = ["CANDIDATE", "CANVAS", "KIND", "LATEST", "WideConfig", "attribute_of"]

# The fields that may be crossed; those of an entity may be followed by .ATTRIBUTE, a category attribute of it.
CANVAS, KIND, LATEST, CANDIDATE = "canvas", "kind", "latest", "candidate"
OF_ENTITIES = (LATEST, CANDIDATE)


def attribute_of(field: str) -> tuple[str, str | None]:
    """What a field is of, and the attribute that it names, if any: ("latest", "category") of "latest.category"."""
    of, _, attribute = field.partition(".")
    return of, attribute or None


class WideConfig(Section):
    """What the ranking network remembers of exact combinations, a weight each, beside what it makes of its inputs."""

    crosses: list[list[str]] = []
    """Fields whose values are remembered together: `canvas`, `kind` and `latest` of the history, `candidate`, and
    attributes of these two, as in `[[latest.category, candidate.category]]`; empty: no such part (the-model.md)."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Of the weights' FTRL, its alpha."""
    l1: float = Field(default=1.0, ge=0)
    """A weight stays 0 until what speaks for it outweighs this: about so many slates with a surprise."""
    l2: float = Field(default=0.0, ge=0)
    """What pulls weights towards 0, as a share of them."""
    admit_after: int = Field(default=1, ge=1, le=255)
    """A combination earns its weight when what has it is taken for the n-th time."""
    expire: Duration | None = "400d"
    """A combination that was not taken for so long, in event time, is dropped; null: never."""
    capacity: int | None = Field(default=None, ge=1)
    """Combinations at most; one more makes one of the least recently taken leave."""

    @field_validator("crosses")
    @classmethod
    def _crosses_tell_candidates_apart(cls, crosses: list[list[str]]) -> list[list[str]]:
        for cross in crosses:
            if len(set(cross)) < len(cross):
                raise ValueError(f"{cross} names a field twice")
            for field in cross:
                of, attribute = attribute_of(field)
                if of not in (CANVAS, KIND, *OF_ENTITIES) or (attribute is not None and of not in OF_ENTITIES):
                    allowed = f"{CANVAS}, {KIND}, {LATEST}, {LATEST}.ATTRIBUTE, {CANDIDATE}, {CANDIDATE}.ATTRIBUTE"
                    raise ValueError(f"{field!r} is not a field: {allowed}")
            if CANDIDATE not in {attribute_of(field)[0] for field in cross}:
                raise ValueError(f"{cross} says the same of every candidate: cross it with {CANDIDATE} or an attribute")
        if len({tuple(cross) for cross in crosses}) < len(crosses):
            raise ValueError("a cross is there twice")
        return crosses

    def fields(self) -> list[str]:
        """Every field that is crossed, once, in the order of the crosses."""
        return list(dict.fromkeys(field for cross in self.crosses for field in cross))

    def reads_history(self) -> bool:
        """Whether any cross needs the user's history."""
        return any(attribute_of(field)[0] in (KIND, LATEST) for field in self.fields())

    def unknown(self, attributes: Collection[str]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """(path below `wide`, what is wrong) of each field whose attribute is not among these."""
        for i, cross in enumerate(self.crosses):
            for j, field in enumerate(cross):
                attribute = attribute_of(field)[1]
                if attribute is not None and attribute not in attributes:
                    known = ", ".join(attributes) or "none"
                    yield ("crosses", i, j), f"{attribute!r} is not a category attribute of any entity type: {known}"
