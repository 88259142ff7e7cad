"""The command ``dela doctor``."""

from __future__ import annotations

from dela.cli.console import console, print_json
from dela.cli.options import Json
from dela.errors import DelaError


def doctor(json: Json = False) -> None:
    """Check this installation: native library, backends, optional packages.

    Ends with exit code 1 when something that commands need is broken.

    Examples:

    $ dela doctor
    $ dela doctor --json
    """
    from dela.runtime.cli.tables import findings_table
    from dela.runtime.doctor import BROKEN, examine

    findings = examine()
    if json:
        print_json([vars(finding) for finding in findings])
    else:
        console().print(findings_table(findings))
    broken = [finding.subject for finding in findings if finding.status == BROKEN]
    if broken:
        raise DelaError(f"broken: {', '.join(broken)}; see the report for how to mend it")
