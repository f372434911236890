"""What every part of a profile file is made of."""

# No module with models has annotations from __future__: pydantic would compile the text of each at every start.

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, StrictFloat, StrictInt, StrictStr
from pydantic_core.core_schema import CoreSchema, no_info_plain_validator_function

Finite = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Positive = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[StrictInt, Field(ge=0)]
Natural = Annotated[StrictInt, Field(ge=1)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]
Text = Annotated[StrictStr, Field(min_length=1)]
Name = Annotated[StrictStr, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Source(Strict):
    """Where a number stands: a file of the origin, its line, and the name of the table there."""

    file: Text
    line: Annotated[StrictInt, Field(ge=1)] | None = None
    name: Text | None = None


class Fault(ValueError):
    """What is wrong with a value that a schema cannot tell: *what*, at the keys *path*, and what would be *right*."""

    def __init__(self, what: str, path: tuple[str, ...] = (), right: str | None = None) -> None:
        super().__init__(what)
        self.what, self.path, self.right = what, path, right


class Late:
    """Marks a part that most files leave out (``Annotated[TokenData, Late()] | None``): what checks it is made when a
    file has it, for to make all of them is a thirtieth of a short run. What is wrong in it is told as of any other
    part."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(source.model_validate)
