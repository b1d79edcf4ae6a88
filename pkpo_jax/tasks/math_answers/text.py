r"""Cleans an answer's text: each symbol gets one spelling, and decoration is removed.

The result is LaTeX in which all commands carry meaning. Words stay inside \text{}, so that they are
never read as products of letters.
"""

from __future__ import annotations

import functools
import re

from pkpo_jax.tasks.math_answers import symbols

# Each command that the parser does not know becomes one of the same meaning that it knows.
_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), "le"),
    **dict.fromkeys(("geq", "geqslant", "geqq"), "ge"),
    **dict.fromkeys(("neq",), "ne"),
    **dict.fromkeys(("lt",), "lt"),
    **dict.fromkeys(("approx", "simeq", "doteq", "thickapprox", "approxeq"), "approx"),
    **dict.fromkeys(("varnothing", "empty", "O"), "emptyset"),
    **dict.fromkeys(("ast",), "cdot"),
    **{"bigcup": "cup", "longrightarrow": "to", "rightarrow": "to", "Longrightarrow": "Rightarrow"},
    **dict.fromkeys(("backslash", "smallsetminus"), "setminus"),
    **{
        "lbrack": "[",
        "rbrack": "]",
        "lparen": "(",
        "rparen": ")",
        "lbrace": r"\{",
        "rbrace": r"\}",
    },
    **dict.fromkeys(("bar", "dot", "overline"), "overline"),
    "colon": ":",
    **dict.fromkeys(("text", "mbox", "hbox", "textnormal", "textrm", "textup"), "text"),
    **dict.fromkeys(("textbf", "textit", "mathrm", "mathbf", "mathit", "mathsf", "bold"), "text"),
    **dict.fromkeys(("operatorname", "emph", "textsf", "mathtt", "texttt", "textsc"), "text"),
    **dict.fromkeys(("ldots", "cdots", "dotsc", "dotsb"), "dots"),
    **dict.fromkeys(("vert", "lvert", "rvert", "mid", "Vert", "lVert", "rVert"), "|"),
    **{"degree": "circ", "deg": "circ", "textdollar": "dollar", "Pr": "P"},
}
_DECORATION = """
left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle
scriptstyle limits nolimits mathstrut strut boldsymbol bm pmb underline boxed fbox therefore angle
measuredangle triangle checkmark rm bf it tiny small normalsize large Large LARGE huge Huge enspace
thinspace medspace thickspace negthinspace ensuremath hfill newline noindent
"""
_DROPPED = frozenset(_DECORATION.split())
_COMMAND = re.compile(r"\\([a-zA-Z]+)\*?\s*")
_SPACING = re.compile(r"\\(?:[ ,;:>]|quad\b|qquad\b|hspace\s*\{[^{}]*\}|phantom\s*\{[^{}]*\})|~")
# Such a comma or space can only separate thousands, while a plain comma may also separate items.
_THOUSANDS = re.compile(r"(?<=[0-9])\s*(?:\{,\}\s*|,\s*\\!\s*|\\,\s*|\\ )(?=[0-9]{3}(?![0-9]))")
_SPACED = re.compile(r"(?<![0-9.] )(?<![0-9.])[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9])")
_COMMAS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_MIXED = re.compile(r"(?<![0-9./] )(?<![0-9./^_{])([0-9]+) +([0-9]+) ?/ ?([0-9]+)(?![0-9/.])")
_ORDINAL = re.compile(r"(?<=[0-9])\s*(?:\^\s*\{?\s*)?(?:\\text\s*)?\{?(?:st|nd|rd|th)\b\}*")
_FONT = re.compile(
    rf"\\(?:{'|'.join(name for name, to in _COMMANDS.items() if to == 'text')})\*?\s*(?=\{{)"
)
# In a font, a lone symbol, a list of numbers, and one of choices are read as they are.
_BARE = re.compile(
    r"\s*\^?\s*\\[a-zA-Z%]+\s*(?:\{[^{}]*\})?"
    r"|[-+0-9.,;/ ]*[0-9](?:[-+0-9.,;/ ]|and|or)*"
    r"|\s*\(?[A-J]\)?(?:\s*(?:,|and|,\s*and)\s*\(?[A-J]\)?)+\s*"
)
# The lines of such an environment are one answer, or the parts of one.
_LINES = re.compile(
    r"\\(?:begin|end)\s*\{(?:aligned|align|gathered|gather|split|equation|center|cases)\*?\}"
)
# The name of a function may be set upright; its argument follows.
_FUNCTION = re.compile(
    r"\\text \{\s*((?:arc)?(?:sin|cos|tan)|cot|sec|csc|ln|log)\s*\}(?=\s*[a-zA-Z0-9({^_\\])"
)
_ROW = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
_COLOR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
# A letter may be typeset as a vector, or upright.
_VECTOR = re.compile(
    r"\\(?:(?:mathbf|vec|hat)\s*\{\s*([a-z])\s*\}|(?:vec|hat) ([a-z])|mathrm\s*\{\s*([ie])\s*\})"
)
_OVER = re.compile(r"\{([^{}]*)\\(over|choose)(?![a-zA-Z])([^{}]*)\}")
# The half of the day (a.m., p.m.), or the base of a numeral, may follow a number.
_HALF_DAY = re.compile(r"(?<=[0-9])\s*(?:\\text\s*\{\s*)?([AaPp])\.?\s?[Mm](?![a-zA-Z])\.?\s*\}?")
_BASE = re.compile(
    r"(?<=[0-9])\s*\(?(?:\\text\s*\{)?\s*\(?\s*(?:in\s+)?base[\s-]*\}?\s*([a-z]+|[0-9]+)\s*\)?\s*\}?$"
)
_RATIO = re.compile(r"([0-9]+)\s*(?:\\text\s*\{)?\s*to\s*\}?\s*([0-9]+)")
_DEGREE = re.compile(
    r"(?<=[0-9])\^\s*(?:\{\s*o\s*\}|o\b)|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\circ(?![a-zA-Z])"
)
# These patterns and their replacements apply, in order, to an answer as it was written.
_WRITTEN_RULES = {
    r"\{:\}": ":",
    r"\bRs\.? ?(?=[0-9])": r"\\rupee ",
    r"\bUSD ?(?=[0-9])": r"\\dollar ",
    r"\bUS ?(?=\\?\$|dollars?\b)": "",
    # In scientific notation, 6e5 and 6 x 10^5 are products.
    r"(?<![0-9a-zA-Z.])([0-9.]+)[eE]\+?([0-9]+)$": r"\1 \\cdot 10^{\2}",
    r"(?<=[0-9]) ?x ?(?=10 ?\^)": r"\\times ",
    r"\\textsuperscript": "^",
    _THOUSANDS: "",
    r"\\\|": "|",
    r"\\!": "",
    r"\\\$": r"\\dollar ",
    r"\\([ij])math(?![a-zA-Z])": r"\1",
}
# These apply, in order, once each command has one name.
_NAMED_RULES = {
    r"\\text ?\{\s*(-?[0-9][0-9.,:/]*)\s*([^{}]*)\}": r"\1\\text {\2}",
    r"\\text ?\{\s*[.,]?\s*\}": " ",
    r"\\mathbb \{?([PE])\b\}?": r"\1",
    r"\^\s*\{?\s*\\prime\s*\}?": "'",
    r"(\\mathbb \{?R\}?) ?- ?(?=\\\{)": r"\1 \\setminus ",
    r"^\s*(?:minus|negative) (?=[0-9\\])": "-",
    r"\\(?:land|wedge) ": " and ",
    r"\\(?:lor|vee) ": " or ",
    r"(?<=[)\]]) ?U ?(?=[(\[])": r"\\cup ",
    _FUNCTION: r"\\\1 ",
    _ORDINAL: "",
    _DEGREE: r"\\degree ",
    r"\bper cent\b|\bpct\b": "percent",
    r"(?<!\\)%|\\text \{\s*(?:\\%|percent)\s*\}": r"\\%",
    r"\s+": " ",
}
_WRITTEN = [(re.compile(pattern), new) for pattern, new in _WRITTEN_RULES.items()]
_NAMED = [(re.compile(pattern), new) for pattern, new in _NAMED_RULES.items()]

_LEAD = re.compile(
    r"\s*(?:\\text\s*\{\s*)?"
    r"(?:(?:so|thus|hence|therefore)\b[ ,]*)?(?:(?:the|my|our)\s+)?(?:(?:final|correct)\s+)?"
    r"(?:answers?|ans|results?|solutions?|option|choice)\b\.?"
    r"(?:\s*(?:is\b|are\b|:|=)\s*:?|(?=\s*[-+$]?\s*[0-9\\]))\s*(\}?)",
    re.IGNORECASE,
)
# A sentence such as "She has 13 apples" states one number. Words that deny or doubt it, or that
# compute another number, keep it from being removed.
_OTHER_WORDS = """
no not never nobody nothing neither none nor hardly cannot if unless maybe perhaps either wrong
incorrect false half third quarter twice double triple negative opposite reciprocal inverse square
cube root
"""
_SENTENCE = re.compile(
    r"\s*(?:\\text\s*\{\s*)?"
    rf"(?:(?!(?:{'|'.join(_OTHER_WORDS.split())})\b)[a-z]+\s+){{1,6}}"
    r"(?:is|are|was|were|has|have|had|equals|costs?|gets?|needs?)\s*(\}?)\s*"
    r"(?=-?(?:\\dollar\s*)?(?:[0-9]|\\(?:frac|sqrt|pi)(?![a-zA-Z])))",
    re.IGNORECASE,
)
# A probability or expectation may name its events in many ways.
_PROBABILITY = re.compile(
    r"^(?:\\text ?\{)?(Pr?|E)\}? ?"
    r"(?=[(\[][^()\[\]]*(?:[|=<>,]|\\(?:vert|cap|cup|text|le|ge|ne)))"
    r"(?:\([^()]*\)|\[[^\[\]]*\]) ?(?=[=]|\\approx)"
)
_SO = re.compile(
    r"^(?:=|:|\\(?:Rightarrow|implies|to)(?![a-zA-Z])|(?:so|thus|hence|therefore)\b)[ ,:]*",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"\s*(?:\\(?:approx|sim)(?![a-zA-Z])"
    r"|(?:\\text\s*\{)?\s*(?:about|approximately|approx|roughly)\b\.?\s*\}?)",
    re.IGNORECASE,
)
_ABOUT_BEHIND = re.compile(
    r"\s*(?:\\text\s*\{)?\s*(\()?(?:approximately|approx\.?)(?(1)\))\s*\}?$", re.IGNORECASE
)
_LABEL = re.compile(
    r"\s*(?:\\text\s*\{)?\s*(?:[Oo]ption\s+|[Cc]hoice\s+)?(?:\(\s*([A-J])\s*\)|([A-J])\s*\)|([A-J])[.:](?=[\s}]))\s*\}?\s*(.*)",
    re.DOTALL,
)

# The text after a choice's letter may name other choices, or go on with "or". A letter before an
# equals sign is a variable, and I is a numeral, as in "I and II only".
_LETTER = re.compile(r"(?<![a-zA-Z\\_])[A-HJ](?![a-zA-Z]| ?=)")
_GOES_ON = re.compile(r"(?:\\text ?\{)?\s*(?:or|and|but|not)\b")
# The empty last group corresponds to the text that follows a label's letter.
_CHOICE = re.compile(r"\s*(?:\\text\s*\{)?\s*(?:[Oo]ption|[Cc]hoice)\s*\}?\s*([A-J])\s*\}?()")


@functools.lru_cache(maxsize=4096)
def clean(text: str, thousands: bool = True) -> str:
    r"""Returns the answer with one spelling of each symbol, without delimiters and decoration.

    Args:
      text: the answer.
      thousands: whether plain commas may separate thousands, as in 1,234, and not only items.

    >>> clean(r"**$\left( 10,\!080 ; \tfrac12 \right)$.**"), clean("The answer is: 3½")
    ('( 10080 ; \\frac 12 )', '3\\frac {1}{2}')
    """
    text = _lines(_ROW.sub(r"\\row ", symbols.latex(text)))
    text = _OVER.sub(_over, _COLOR.sub("", text))
    for pattern, replacement in _WRITTEN:
        text = pattern.sub(replacement, text)
    text = _fonts(_VECTOR.sub(r"\1\2\3", _SPACING.sub(" ", text))).replace("$", "")
    text = re.sub(r"\\[()\[\]]", " ", text).replace("`", "")
    text = re.sub(r"(\*\*|__)(.*?)\1", r"\2", text)
    text = _COMMAND.sub(_command, _VECTOR.sub(r"\1\2\3", text))
    for pattern, replacement in _NAMED:
        text = pattern.sub(replacement, text)
    text = _PROBABILITY.sub(r"\1", _BASE.sub(r"_{\1}", _lead(text.strip())))
    text = _HALF_DAY.sub(lambda m: rf"\text {{{m[1].lower()}m}}", text)
    text = _RATIO.sub(r"\1:\2", text) if _RATIO.fullmatch(text) else text
    text = _SPACED.sub(lambda m: m[0].replace(" ", ""), text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _commas(text) if thousands else text)
    return text.strip()


def about(text: str) -> tuple[str, bool]:
    r"""Returns clean text without \approx, "about" or "(approximately)", and whether it had one."""
    rest = _ABOUT_BEHIND.sub("", _ABOUT.sub("", text, count=1) if _ABOUT.match(text) else text)
    return rest.strip(), rest != text


def label(text: str) -> tuple[str, str] | None:
    """Returns the letter of a choice and the text after it, for clean text such as "(B) 12".

    It returns None if the text after it names another choice, as in "(B) or (C)".
    """
    match = _LABEL.fullmatch(text) or _CHOICE.fullmatch(text)
    if not match:
        return None
    rest = match[match.re.groups].strip()
    # The text is a product such as (A)(B + 1), or an equation of points.
    if rest and re.match(r"[,(\[^_+*/=<>!-]|\\(?:cdot|times|cup|cap)", rest) and rest[0] != "-":
        return None
    letter = next(filter(None, match.groups()))
    others = set(_LETTER.findall(rest)) - {letter}
    return None if others or _GOES_ON.match(rest) else (letter, rest)


def words(text: str) -> str:
    r"""Returns clean text as plain words in lower case.

    >>> words(clean(r"\text{May  4}.")), words("Evelyn")
    ('may 4', 'evelyn')
    """
    return re.sub(r"\s+", " ", re.sub(r'\\text\b|[{}"]', "", text)).strip().casefold()


def squeezed(text: str) -> str:
    r"""Returns clean text without \text{} and without spaces, except for those between digits.

    Braces around one character vanish too.

    This is the last resort for comparing answers that cannot be read.

    >>> squeezed(clean(r"\text{(A), } x \to 3 4"))
    '(A),x\\to3 4'
    """
    text = re.sub(r"([_^])\{(.)\}", r"\1\2", re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text))
    return re.sub(r"(?<![0-9.])\s+|\s+(?![0-9.])", "", text)


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name in _DROPPED:
        return " "
    name = _COMMANDS.get(name, name)
    return f"\\{name} " if len(name) > 1 and name.isalpha() else name


def _over(match: re.Match[str]) -> str:
    command = "frac" if match[2] == "over" else "binom"
    return rf"\{command}{{{match[1]}}}{{{match[3]}}}"


def _lines(text: str) -> str:
    """Joins the lines of environments such as aligned: by commas, unless a sign follows."""
    # An & in cases separates a value from its condition.
    if not _LINES.search(text) or (r"{cases}" in text and "&" in text):
        return text
    lines = _LINES.sub(" ", text)
    if r"\begin" in lines:
        return lines
    lines = re.sub(r"\s*\\row\s*(?=&?\s*(?:[=<>]|\\approx|\\[lg]eq?\b))", " ", lines)
    return lines.replace(r"\row", ",").replace("&", " ")


def _fonts(text: str) -> str:
    r"""Leaves fonts such as \text around words alone, so that mathematics inside them is read.

    >>> _fonts(r"\mathbf{\frac{1}{2}}"), _fonts(r"\text{so $x = 5$ cm}"), _fonts(r"5\text{\%}")
    ('{\\frac{1}{2}}', '\\text{so }x = 5\\text{ cm}', '5\\%')
    """
    parts, last = [], 0
    for match in _FONT.finditer(text):
        closes = _closes(text[match.end() :])
        if match.start() >= last and closes > 0:
            inside = _fonts(text[match.end() + 1 : match.end() + closes])
            parts += [text[last : match.start()], _font(match[0], inside)]
            last = match.end() + closes + 1
    return "".join(parts) + text[last:]


def _font(command: str, inside: str) -> str:
    # Dollars are mathematics within text.
    words = re.sub(r"\$(.*?)\$|\\\((.*?)\\\)", rf"}}\1\2\{command}{{", inside)
    if words != inside:
        return re.sub(rf"\{command}\{{\s*\}}", "", f"{command}{{{words}}}")
    inside = re.sub(r"\^\s*\{([0-9])\}", r"^\1", inside)
    if _BARE.fullmatch(inside):
        return inside
    return f"{{{inside}}}" if re.search(r"[\\{}=<>]", inside) else f"{command}{{{inside}}}"


def _lead(text: str) -> str:
    r"""Removes phrases before the answer, markup, and final punctuation."""
    for _ in range(3):
        text = text.strip().strip("*").strip().strip('"')
        text = _SO.sub("", text)
        match = _LEAD.match(text) or _SENTENCE.match(text)
        if match:
            opened = match[0].count("{") > match[0].count("}")
            rest = text[match.end() :]
            text = rest.replace("}", "", 1) if opened else rest
        while text.endswith((".", ",", ";", "!.", " ", "\\")) and not text.endswith("..."):
            if text.endswith("\\dots"):
                break
            text = text[:-1]
        text = text.removesuffix("\\row").strip()
        while text.startswith("{") and _closes(text) == len(text) - 1:
            text = text[1:-1].strip()
    return text


def _closes(text: str) -> int:
    """Returns the index at which the brace that starts the text closes; -1 if it never does."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return -1


def _commas(text: str) -> str:
    """Removes commas that separate thousands, except in brackets, where (1,234) is a point."""
    depth, parts, last = 0, [], 0
    for match in re.finditer(r"\\[{}]|[()\[\]]", text):
        part = text[last : match.start()]
        parts += [part if depth else _COMMAS.sub(lambda m: m[0].replace(",", ""), part), match[0]]
        depth = max(0, depth + (1 if match[0][-1] in "([{" else -1))
        last = match.end()
    part = text[last:]
    parts.append(part if depth else _COMMAS.sub(lambda m: m[0].replace(",", ""), part))
    return "".join(parts)
