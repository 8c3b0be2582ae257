"""The event loop: uvloop where there is one, because it serves more calls a second."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import TypeVar

_Result = TypeVar("_Result")

_YOUNG = 20_000
"""Objects made, and not ended, before the garbage collector looks at them. Its default of 700
has it look every ten calls, which took 5 % of the processor that a save needs."""


def run(main: Coroutine[object, object, _Result]) -> _Result:
    """Run ``main`` to its end on a new event loop and return its result.

    What exists now, modules above all, the garbage collector does not look at again.
    """
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    gc.freeze()
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(main)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - there is none for Windows and for PyPy
    except ImportError:
        return None
    return uvloop.new_event_loop
