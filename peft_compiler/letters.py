"""The letters of an einsum of two operands."""


def spelt_letters(equation: str, axes: int) -> tuple[str, str, str]:
    """Returns the letters of both operands and of the result; `axes` are those of the left operand.

    What stands for any axes is spelt out in capitals, the same in all three.

    >>> spelt_letters("...qd, ...kd -> ...qk", 4)
    ('ABqd', 'ABkd', 'ABqk')
    """
    terms, _, out = equation.replace(" ", "").partition("->")
    left, _, right = terms.partition(",")
    missing = axes - len(left.replace("...", "")) if "..." in left else 0
    free = [letter for letter in "ABCDEFGH" if letter not in equation][:missing]
    spelt = [term.replace("...", "".join(free)) for term in (left, right, out)]
    return spelt[0], spelt[1], spelt[2]
