"""Finding an autoscaler by what the user calls it (`by_name`): a file in servetwin.policies.scaling, or an entry
point of the group "servetwin.autoscalers", among others."""

from __future__ import annotations

from servetwin.core.scaling.autoscaler import Autoscaler
from servetwin.policies import scaling

from .by_name import ByName

_AUTOSCALERS: ByName[Autoscaler] = ByName(Autoscaler, scaling, "servetwin.autoscalers", "autoscaler")

autoscaler_names = _AUTOSCALERS.names
code_of = _AUTOSCALERS.code_of
complete = _AUTOSCALERS.complete
make = _AUTOSCALERS.make
describe = _AUTOSCALERS.describe
