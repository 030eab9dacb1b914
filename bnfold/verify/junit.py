"""A verdict as JUnit XML, which continuous integration shows: a test case for the verdict and one for each segment."""

from __future__ import annotations

from xml.etree import ElementTree

from bnfold.verify import criterion
from bnfold.verify.comparison import Comparison


def junit(found: Comparison, name: str, strict: bool = False) -> str:
    """The XML text.

    Args:
        found: the verdict.
        name: of the test suite: what was compared.
        strict: whether a rounding-scale difference is a failure.
    """
    code = found.exit_code(strict)
    limit = criterion.EQUAL if strict else criterion.DIFFERENT
    segments = [segment for segment in found.segments if segment.basis != "coordinates"]
    failed = [segment for segment in segments if segment.r > limit]
    suite = ElementTree.Element(
        "testsuite", name=_text(name), tests=str(1 + len(segments)), failures=str(int(code == 1) + len(failed)),
        errors="0", skipped=str(int(code == 3)),
    )  # fmt: skip
    verdict = ElementTree.SubElement(suite, "testcase", classname="bnfold.verify", name="verdict")
    if code:
        kind = "failure" if code == 1 else "skipped"
        ElementTree.SubElement(verdict, kind, message=_text(f"{found.verdict}: {found.reason}"))
    for segment in segments:
        case = ElementTree.SubElement(suite, "testcase", classname="bnfold.verify.segment", name=_text(segment.value))
        if segment.r > limit:
            text = segment.problem or f"r = {segment.r:.3g} (limit {limit:g}), node {segment.node} ({segment.op})"
            ElementTree.SubElement(case, "failure", message=_text(text))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _text(text: str) -> str:
    """A text that XML can hold."""
    return "".join(c if c.isprintable() else " " for c in text)
