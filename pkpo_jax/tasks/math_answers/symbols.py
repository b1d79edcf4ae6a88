r"""Translates what people type into LaTeX: symbols, superscripts, and fractions such as ½."""

from __future__ import annotations

import re
import unicodedata

_SYMBOLS = {
    "−–—‒﹣－": "-",
    "×": r"\times ",
    "·⋅∙": r"\cdot ",
    "÷": r"\div ",
    "√": r"\sqrt ",
    "π": r"\pi ",
    "°º∘˚": r"^\circ ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "∨": r"\lor ",
    "∧": r"\land ",
    "∴✓✔": " ",
    "→⇒": r"\to ",
    "∶": ":",
    "⁄": "/",
    "∞": r"\infty ",
    "≤⩽": r"\le ",
    "≥⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "∈": r"\in ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "\u00a0\u2009\u202f\u2002\u2003\t\n\r": " ",
    "“”": '"',
    "‘’′": "'",
    "€": r"\euro ",
    "£": r"\pounds ",
    "₹": r"\rupee ",
    "¥": r"\yen ",
    "¢": r"\text{ cents}",
}
_UNICODE = str.maketrans({char: to for chars, to in _SYMBOLS.items() for char in chars})
# Full-width characters are those of ASCII; a vulgar fraction such as ½ is two numerals.
_FULL_WIDTH = {0xFEE0 + code: chr(code) for code in range(ord("!"), ord("~") + 1)}
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPT, _SUBSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_ROOT, _CUBE_ROOT = re.compile(r"√ ?([0-9]+(?:\.[0-9]+)?)"), re.compile("∛ ?([0-9]+)")


def latex(text: str) -> str:
    r"""Returns text in which LaTeX takes the place of typed symbols.

    >>> latex("x² ≤ ½√3")
    'x^{2} \\le  \\frac{1}{2}\\sqrt{3}'
    """
    text = _SUPERSCRIPT.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR.sub(_vulgar, text.translate(_FULL_WIDTH)).replace("+/-", "±")
    text = _ROOT.sub(r"\\sqrt{\1}", _CUBE_ROOT.sub(r"\\sqrt[3]{\1}", text))
    return text.translate(_UNICODE)


def _vulgar(match: re.Match[str]) -> str:
    over, _, under = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return rf"\frac{{{over}}}{{{under}}}"
