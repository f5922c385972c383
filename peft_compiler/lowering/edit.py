"""`Edit`: one insertion, as the module that it joins has to know it."""

from dataclasses import dataclass

from peft_compiler.methods import Wiring
from peft_compiler.site import Place, Projection, Whole


@dataclass(frozen=True, slots=True)
class Edit:
    """Joins the inserted module `inserted.<name>` to a place in the forward of its host.

    Attributes:
        name: Name within the host's `inserted`.
        wiring: How it joins.
        place: Where, in the host's forward.
    """

    name: str
    wiring: Wiring
    place: Place

    @property
    def around(self) -> bool:
        """Whether it joins the host as a whole, whatever the host's forward does inside."""
        if isinstance(self.place, Projection):
            return self.place.anchor is None and self.wiring is not Wiring.ON_WEIGHT
        return isinstance(self.place, Whole) and self.wiring is Wiring.REPLACE
