"""The process of an answer: runs it, then calls its functions as the checker's process asks.

Whatever the answer does to this process, all that it can send are values and exceptions.
"""

from __future__ import annotations

import os
import sys

from pkpo_jax.tasks.sandboxed import confine, wire

Module = type(sys)
OPERATIONS = {
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "item": lambda value, key: value[key],
}


def main(job_fd: int) -> None:
    """Says first what of `names` there is, or "syntax" or "raised", and then serves."""
    job = confine.start(job_fd)
    os.close(job["report"])
    requests, replies = os.fdopen(job["requests"], "rb"), os.fdopen(job["replies"], "wb")
    module = sys.modules["answer"] = Module("answer")
    failure = _run(job["sources"], module)
    found = failure or [name for name in job["names"] if hasattr(module, name)]
    wire.send(replies, wire.encode(found, id))
    _serve(requests, replies, module)


def _run(sources: list[str], module: Module) -> str:
    """Runs the sources one after the other; what went wrong, or nothing."""
    try:
        programs = [compile(s, "answer.py", "exec", dont_inherit=True) for s in sources]
    except BaseException:
        return "syntax"
    try:
        for program in programs:
            exec(program, module.__dict__)
    except BaseException:
        return "raised"
    return ""


def _serve(requests: object, replies: object, module: Module) -> None:
    objects: list = []
    keys: dict[int, int] = {}

    def keep(value: object) -> int:
        key = keys.setdefault(id(value), len(objects))
        if key == len(objects):
            objects.append(value)
        return key

    def find(key: int | str) -> object:
        return getattr(module, key) if isinstance(key, str) else objects[key]

    while True:
        message = wire.receive(requests)
        try:
            operation, *arguments = wire.decode(message, find)
            reply = wire.encode(["value", OPERATIONS[operation](*arguments)], keep)
        except BaseException as e:
            reply = wire.encode(["raised", type(e).__name__], id)
        wire.send(replies, reply)
