"""Counts the docstrings and comments that do not open with a sentence.

    python -m tests.prose [--list] [--limit=PERCENT] [PATH ...]

A docstring of a function opens with a verb ("Returns ..."), one of a class or module may also open
with a noun phrase. A comment opens with a sentence, which has a verb; comments behind code, of
fewer than four words, or without letters are labels and not counted. This is a heuristic: it
knows common verbs and no grammar.
"""

import argparse
import ast
import io
import pathlib
import re
import sys
import tokenize

_AUXILIARIES = set(
    """is are was were be been has have had does do did can cannot could may might must shall should
    will would isn't aren't wasn't doesn't don't didn't can't won't let""".split()
)
_VERBS = set(
    """accept add adjust agree aggregate align allow allocate answer appear append apply arrive ask
    assert assign assume attach average avoid become begin belong bind block bound break bring build
    cache calculate call carry catch cause change check choose clamp clear clip close collect
    combine come communicate compare compile compute concatenate configure confirm connect consist
    construct contain continue contribute convert copy correct cost count cover crash create cut
    cycle decide decode declare decrease default define delete depend derive describe detach
    determine differ differentiate discard divide download draw drop duplicate emit empty enable
    encode end enforce ensure enter enumerate equal estimate evaluate exceed exclude execute exist
    exit expand expect explain export expose extend extract fail fall feed fetch fill filter find
    finish fit flatten flush follow force fork format forward free freeze gather generate get give
    go grade grow guarantee handle happen help hide hit hold ignore implement import include
    increase index infer inherit initialise initialize inline insert inspect install instantiate
    interpret invert involve iterate join keep kill know lack last lead leave let lie limit link
    list listen live load lock log look lose lower make map mark mask match matter mean measure
    merge miss mount move multiply name need normalise normalize note notify number obey occur
    omit open order overflow overlap overwrite own pad parse pass pause pay perform permit pick
    pin place plot point poll prefer prepare prepend preserve prevent print probe produce promise
    prove provide pull push put raise reach read receive recommend recompute record recover reduce
    refer refill refuse register reject release rely remain remember remove rename render repeat
    replace report represent reproduce require resample reserve reset reshape resolve respond
    restart restore restrict resume retry return reuse reverse rewrite round run sample satisfy save
    say scale scan schedule score search see select send separate serialize set shape share shift
    show shrink shuffle shut sign simplify simulate sit skip sleep slice solve sort sound spawn
    specify spend split stack stand start state stay stop store stream strip submit subtract
    succeed suffice suggest sum supply support survive suspend swap switch synchronise tag take
    tell terminate test tie time tokenize touch trace track train transform translate treat trigger
    trim truncate try turn unify unpack update upload use validate vanish vary verify visit vote
    wait walk want warm warn watch weigh wins win work wrap write yield differ begin
    expose fold defer display draw benchmark bootstrap broadcast shard compress decompress quote
    escape tabulate annotate summarise summarize unwrap launch stage warn resolve mirror donate
    plan poison reconstruct replay""".split()
)
_PAST = set(
    """came went took made gave ran began wrote read said saw left kept held lost found meant put
    drew fell grew knew led lay sent set spent stood told won got""".split()
)
# Words that cannot open a sentence on their own, or that promise a clause which rarely follows.
_BAD_OPENERS = set("of and or but nor as that those none whose which what to so".split())
_NOT_DOCSTRINGS = set("this its as is has was plus minus thus series axis class always".split())
_DIRECTIVE = re.compile(r"!|shellcheck|ruff|noqa|type:|pyrefly|Copyright|TODO")


def _stems(word):
    yield word
    for ending, replacement in (("ies", "y"), ("es", ""), ("s", ""), ("es", "e")):
        if word.endswith(ending):
            yield word[: -len(ending)] + replacement


def _is_verb(word):
    stems = [s for s in _stems(word)]
    # "resubmits", "unpads": a known verb behind a prefix.
    stems += [s[2:] for s in stems if s.startswith(("re", "un"))]
    return word in _AUXILIARIES or word in _PAST or any(stem in _VERBS for stem in stems)


def _first_sentence(text):
    text = " ".join(text.split())
    return re.split(r"(?<=[.:;!?])\s", text, maxsplit=1)[0]


def _words(text):
    return re.findall(r"[A-Za-z][A-Za-z'-]*", re.sub(r"`[^`]*`", "X", text))


def _opens_with_verb(text):
    words = _words(_first_sentence(text))
    if not words:
        return False
    first = words[0].lower()
    return first.endswith("s") and _is_verb(first) and first not in _NOT_DOCSTRINGS


def _opens_with_noun_phrase(text):
    words = _words(_first_sentence(text))
    return bool(words) and words[0].lower() not in _BAD_OPENERS


def is_fragment(kind, text):
    """Says whether a text does not open as one of its kind should.

    Args:
      kind: "function", "property", "class", "module" or "comment".
      text: the docstring, or the comment without its hash signs.

    Returns:
      A bool.
    """
    words = [word.lower() for word in _words(_first_sentence(text))]
    if kind == "function":
        return not _opens_with_verb(text)
    if kind != "comment":
        return not (_opens_with_verb(text) or _opens_with_noun_phrase(text))
    # "What is sampled stays on the device." is a sentence: its clause has a verb, and so has it.
    verbs = sum(map(_is_verb, words))
    needed = 2 if words and words[0] in _BAD_OPENERS - {"those", "none", "that"} else 1
    return verbs < needed or words[0] in {"of", "and", "or", "nor"}


def docstrings(source):
    """Yields the line, kind and text of each docstring of a program."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
                decorators = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
                # A property reads as the noun that it is.
                if any("property" in decorator for decorator in decorators):
                    kind = "property"
                yield getattr(node, "lineno", 1), kind, text


def comments(source):
    """Yields the line, kind and text of each comment that has a line of its own."""
    block, start, end = [], 0, -1
    for token in [*tokenize.generate_tokens(io.StringIO(source).readline), None]:
        own_line = token and token.type == tokenize.COMMENT and token.line.lstrip()[0] == "#"
        if token and token.type in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            continue
        if block and not (own_line and token.start[0] == end + 1):
            text = " ".join(block)
            if len(_words(text)) > 3 and not _DIRECTIVE.match(text):
                yield start, "comment", text
            block = []
        if own_line:
            start = start if block else token.start[0]
            end = token.start[0]
            block.append(token.string.lstrip("#").strip())


def main():
    """Prints the counts of each kind, and with --list each text that is a fragment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=["pkpo_jax", "configs", "experiments"])
    parser.add_argument("--list", action="store_true", help="print the fragments")
    parser.add_argument("--limit", type=float, default=3, help="percent of each kind, at most")
    options = parser.parse_args()
    files = []
    for path in map(pathlib.Path, options.paths):
        files += [path] if path.is_file() else sorted(path.rglob("*.py"))
    failed = False
    for name, read in (("docstrings", docstrings), ("comments", comments)):
        total, bad = 0, 0
        for path in files:
            for line, kind, text in read(path.read_text()):
                total += 1
                if is_fragment(kind, text):
                    bad += 1
                    if options.list:
                        print(f"{path}:{line}: {kind}: {_first_sentence(text)}")
        print(f"{name}: {bad} of {total} open with a fragment ({100 * bad / max(total, 1):.1f}%)")
        failed |= bad * 100 > options.limit * total
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
