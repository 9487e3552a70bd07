"""Conformance suites: what each plug point promises, as tests that a member of one's own runs
through.

    from autocompress.testing import TechniqueSuite

    class TestMine(TechniqueSuite):
        members = (MyTechnique(),)

Under pytest, which nothing else of this package needs. All models are tiny, random and built here.
"""

# ruff: noqa: E402 - asserts explain themselves in what is imported after they are registered
import pytest

_SUITES = (
    "devices",
    "families",
    "formats",
    "objectives",
    "quantizers",
    "samplers",
    "tasks",
    "techniques",
)
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in _SUITES))

from autocompress.testing.devices import DeviceSuite as DeviceSuite
from autocompress.testing.families import FamilySuite as FamilySuite
from autocompress.testing.formats import FormatSuite as FormatSuite
from autocompress.testing.models import tiny as tiny
from autocompress.testing.objectives import ObjectiveSuite as ObjectiveSuite
from autocompress.testing.quantizers import QuantizerSuite as QuantizerSuite
from autocompress.testing.samplers import SamplerSuite as SamplerSuite
from autocompress.testing.tasks import TaskSuite as TaskSuite
from autocompress.testing.techniques import TechniqueSuite as TechniqueSuite
