"""Reads the units, and words such as "million", that follow a number."""

from __future__ import annotations

import re

_SAME = {
    "cm": "centimeter centimeters centimetre centimetres cms",
    "mm": "millimeter millimeters millimetre millimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres kms",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "g": "gram grams",
    "kg": "kilogram kilograms kgs",
    "mg": "milligram milligrams",
    "lb": "pound pounds lbs",
    "oz": "ounce ounces",
    "l": "liter liters litre litres L",
    "ml": "milliliter milliliters mL",
    "s": "second seconds sec secs",
    "min": "minute minutes mins",
    "h": "hour hours hr hrs",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "dollar": "dollars usd USD",
    "cent": "cents",
    "euro": "euros",
    "sterling": "",
    "rupee": "rupees",
    "yen": "",
    "am": "",
    "pm": "",
    "unit": "units",
    "rad": "radian radians",
    "degree": "degrees deg",
}
_NAMES = {name: unit for unit, names in _SAME.items() for name in [unit, *names.split()]}
_NAMES |= {"mph": "mi/h", "kph": "km/h", "kmh": "km/h"}
# These commands may stand before or after an amount of money.
CURRENCIES = {r"\dollar": "dollar", r"\euro": "euro", r"\pounds": "sterling"}
CURRENCIES |= {r"\rupee": "rupee", r"\yen": "yen"}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALES["trillion"] = 10**12
# These words express more than a unit, such as another number, a doubt or an alternative.
_OTHER_WORDS = """
zero one two three half halves third thirds quarter quarters dozen dozens double twice triple once
binary octal decimal hex hexadecimal cannot impossible mille not or and nor but maybe perhaps
probably possibly either neither else plus minus over under above below more less fewer greater than
least most at to through between until up down around about except without with if then is are was
equals equal mod modulo base squared cubed root power factorial choose pi infinity all any none no
yes wrong right correct incorrect true false answer when where which percent
"""
_NO_UNITS = frozenset(_OTHER_WORDS.split())
# This matches the other numerals: six, sixteen, sixty, sixths, tens, hundredths.
_NUMERAL = re.compile(
    "(?:four|fif|five|six|seven|eight?|nine?|ten|eleven|twelve|twelf)(?:teen|t(?:y|ie))?(?:th)?s?"
    "|(?:thir|for|twen)(?:teen|t(?:y|ie))(?:th)?s?|(?:hundred|thousand|[mbtr]+illion)(?:ths?|s)"
)
# This matches a constant, alone or on the last side of an equation, with the letter of a unit.
_TYPED = re.compile(
    r"^((?:.*(?:=|\\approx))? ?-?(?:[0-9.{} ()/^]|\\(?:frac|sqrt|pi|times|cdot|dollar|degree))*"
    r"(?<=[0-9} ])) ?([mgshLlNJWVCFK])(?=$|\^|/)",
    re.DOTALL,
)


def is_unit(word: str) -> bool:
    """Returns whether a word is a known unit, a word such as "million", or "sq"."""
    return word in _NAMES or word in _SCALES or word == "sq"


def scale(text: str) -> tuple[int, str | None]:
    """Returns the factor of words such as "million", and the unit's name in one spelling.

    The name is None for a text that is not a unit: it has digits, signs, or words such as "or".

    >>> scale(" square inches"), scale("million dollars"), scale("(not 8)")
    ((1, 'in^2'), (1000000, 'dollar'), (1, None))
    """
    text = text.replace(".", "")
    if not re.fullmatch(r"[a-zA-Z '/^0-9()-]+", text) or re.search(r"(?<!\^)[0-9]", text):
        return 1, None
    text = re.sub(r"([a-zA-Z]) squared\b", r"\1^2", text.replace(" per ", "/"))
    words = re.findall(r"[a-zA-Z]+(?:\^[0-9])?|/", re.sub(r"([a-zA-Z]) cubed\b", r"\1^3", text))
    if any(map(_is_other, words)) or len(words) > 5:
        return 1, None
    factor, names, power = 1, [], ""
    for word in words:
        bare, _, exponent = word.partition("^")
        if bare in _SCALES and not names:
            factor *= _SCALES[bare]
        elif bare in ("square", "sq", "cubic", "cu"):
            power = "2" if bare.startswith("s") else "3"
        elif bare != "of":
            exponent, power = exponent or power, ""
            names.append(_NAMES.get(bare, bare) + (f"^{exponent}" if exponent else ""))
    return factor, " ".join(names).replace(" / ", "/")


def _is_other(word: str) -> bool:
    word = word.partition("^")[0].lower()
    return word in _NO_UNITS or _NUMERAL.fullmatch(word) is not None


def differ(one: str, other: str) -> bool:
    """Returns whether two units contradict each other: both are known, and they differ."""
    known = [
        unit and all(re.sub(r"\^.*", "", part) in _SAME for part in re.split("[ /]", unit) if part)
        for unit in (one, other)
    ]
    return all(known) and one != other


def _quotient(match: re.Match[str]) -> str:
    """Returns a fraction of two known units as a unit, and other fractions unchanged."""
    known = all(map(is_unit, match.groups()))
    return rf"\text {{{match[1]}/{match[2]}}}" if known else match[0]


def marked(text: str) -> str:
    r"""Marks a unit after a constant at the end of clean text by \text{}.

    The unit is typed as letters, or as a fraction such as \frac{km}{h}.

    "12 m^2" may also be a product, and is one where the right answer has variables; callers try
    both readings.

    >>> marked(r"5 \frac {km}{h}"), marked(r"2\frac {a}{b}")
    ('5 \\text {km/h}', '2\\frac {a}{b}')
    >>> marked("12 m^2"), marked("60 km/h"), marked("2x"), marked("2x + 3 h")
    ('12 \\text {m}^2', '60 km/h', '2x', '2x + 3 h')
    """
    text = re.sub(r"(?<=[0-9]) ?min$", r" \\text {min}", text)
    text = re.sub(
        r"\\frac ?\{(?:\\text ?\{)?([a-z]{1,2})\}+ ?\{(?:\\text ?\{)?([a-z]{1,2})\}+$",
        _quotient,
        text,
    )
    text = re.sub(r"(?<=[0-9])(?: ?\\mu m| ?\\Omega)$", r"\\text {unit}", text)
    return _TYPED.sub(lambda m: rf"{m[1].rstrip()} \text {{{m[2]}}}", text)
