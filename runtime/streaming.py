from __future__ import annotations

import msgspec


class LiveOptions(msgspec.Struct, frozen=True):
    interval: float = 1.0
    pause: float = 0.8
    stable: bool = True
