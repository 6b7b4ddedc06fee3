"""`pacecore doctor`: what was built, what was found, what is missing and how to mend it."""

import json
from dataclasses import asdict

import click

from pacecore import doctor as checks

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what was built, what was found, and what is missing; exit code 1 if something is."""
    findings = checks.doctor()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            state = click.style(f"{finding.state:8}", fg=_COLOURS[finding.state])
            click.echo(f"{state}{finding.name:15}{finding.found}")
            if finding.mend:
                click.echo(f"{'':23}-> {finding.mend}")
    if checks.is_broken(findings):
        ctx.exit(1)
