"""Numbers as a user reads them: lengths of time, and speeds."""

from __future__ import annotations

from typing import Optional


def duration(seconds: float) -> str:
    """34 s, 4 min, 2 h 05 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def speed(images_per_second: Optional[float]) -> str:
    """2.50 images/s, or 25 s an image where that is more than ten seconds; what there is to say before the first."""
    if images_per_second is None:
        return "no picture yet"
    return (
        f"{images_per_second:.2f} images/s" if images_per_second >= 0.1 else f"{1 / images_per_second:.0f} s an image"
    )


def money(cost: float, currency: str) -> str:
    """3.00, or 3.00 CNY where the profile names a currency."""
    return f"{cost:.2f} {currency}".rstrip()
