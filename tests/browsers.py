"""Waiting for what a page does in its own time. Playwright's `wait_for_function` evaluates strings inside the page,
which the policy of our pages forbids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def wait_until(page: Any, condition: Callable[[], bool], seconds: float = 5) -> None:
    """Waits until `condition()` is true; an AssertionError in it counts as false until the time is over."""
    for left in range(int(seconds * 20), 0, -1):
        try:
            if condition():
                return
        except AssertionError:
            if left == 1:
                raise
        page.wait_for_timeout(50)
    raise AssertionError(f"it did not happen within {seconds} s")
