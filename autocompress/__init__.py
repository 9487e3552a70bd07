"""Hardware-aware search for compressed transformer language models.

    from autocompress import search
    result = search("my-model", "my-data.csv", hardware="cpu-1-thread", space="encoder", out="run",
    time_limit_s=1200) best = result.front.pick(max_latency_ms=3.0)

Names are imported when first used; only those of the search itself bring in torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.artifact import load_model as load_model
    from autocompress.candidate import Candidate as Candidate
    from autocompress.engine.loop import SearchResult as SearchResult
    from autocompress.errors import AutocompressError as AutocompressError
    from autocompress.errors import DeviceLost as DeviceLost
    from autocompress.errors import RequestUnmet as RequestUnmet
    from autocompress.errors import SearchFailed as SearchFailed
    from autocompress.errors import UserError as UserError
    from autocompress.hardware.profile import HardwareProfile as HardwareProfile
    from autocompress.limits import Limits as Limits
    from autocompress.pareto import Front as Front
    from autocompress.pareto import Member as Member
    from autocompress.pareto import load_front as load_front
    from autocompress.pareto import load_fronts as load_fronts
    from autocompress.recipes import Recipe as Recipe
    from autocompress.report import write_report as write_report
    from autocompress.search_space import SearchSpace as SearchSpace
    from autocompress.searching import search as search
    from autocompress.tasks.data import Columns as Columns

_HOMES = {
    "AutocompressError": "errors",
    "Candidate": "candidate",
    "Columns": "tasks.data",
    "DeviceLost": "errors",
    "Front": "pareto",
    "HardwareProfile": "hardware.profile",
    "Limits": "limits",
    "Member": "pareto",
    "Recipe": "recipes",
    "RequestUnmet": "errors",
    "SearchFailed": "errors",
    "SearchResult": "engine.loop",
    "SearchSpace": "search_space",
    "UserError": "errors",
    "load_front": "pareto",
    "load_fronts": "pareto",
    "load_model": "artifact",
    "search": "searching",
    "write_report": "report",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}")
    return getattr(import_module(f"autocompress.{_HOMES[name]}"), name)
