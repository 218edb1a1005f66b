"""What a search has found: a table for the terminal, a page with Optuna's plots, the best trial as an experiment."""

import html
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mnist_cnn.errors import UserError, one_line
from mnist_cnn.files import write_file
from mnist_cnn.report import document
from mnist_cnn.report.columns import aligned
from mnist_cnn.search.database import first_number
from mnist_cnn.search.plots import plots_of
from mnist_cnn.search.space import Space, describe
from mnist_cnn.search.trials import ERROR
from mnist_cnn.search.winner import write_winner
from mnist_cnn.terminal import train_command

_ROWS = 10  # that the terminal shows
_ROWS_OF_THE_PAGE = 50


@dataclass(frozen=True)
class Findings:
    """The trials of a study: `best` first are the complete ones, then those that were pruned; `failed` apart.

    `winner` has the arguments that train the best one's settings, or None where no file can say them.
    """

    best: list[FrozenTrial]
    failed: list[FrozenTrial]
    keys: list[str]
    winner: str | None

    def counts(self) -> dict[str, int]:
        states = Counter(trial.state for trial in self.best)
        return {
            "complete": states[TrialState.COMPLETE],
            "pruned": states[TrialState.PRUNED],
            "failed": len(self.failed),
        }

    def summary(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts().items())
        return f"{len(self.best) + len(self.failed)} trials: {counts}"

    def header(self) -> list[str]:
        return ["trial", "validation accuracy", "epochs", *self.keys]

    def rows(self) -> list[list[str]]:
        return [
            [
                str(first_number(trial)),
                f"{trial.value:.2%}" if trial.state == TrialState.COMPLETE else "pruned",
                str(len(trial.intermediate_values)),
                *(_short(trial.params.get(key, "")) for key in self.keys),
            ]
            for trial in self.best
        ]

    def errors(self) -> list[str]:
        return [f"trial {first_number(trial)}: {one_line(trial.user_attrs[ERROR], 500)}" for trial in self.failed]

    def to_dict(self) -> dict[str, Any]:
        best = self.best[0]
        return {
            "trials": self.counts(),
            "best": {"trial": first_number(best), "val/accuracy": best.value, "params": best.params},
            "winner": self.winner,
        }


def report(study: Study, space: Space, folder: Path, command: str) -> Findings:
    """Write `search.html` and `experiment/winner.yaml`; returns what was found. UserError if no trial is complete."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if space.has(trial.params)]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise UserError(
            f"{one_line(folder)}: no trial of the search is complete; see error.txt in the trials' folders."
        )
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL and ERROR in trial.user_attrs]
    complete.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))
    best = complete[0]
    about = [
        f"Found by:  {command}",
        f"Measured:  validation accuracy {best.value:.2%}, the best of {len(complete) + len(pruned)} trials with one "
        f"seed each: trial {first_number(best)}.",
        "           The best of many is partly luck. Only further seeds, as above, tell how good these settings are.",
    ]
    winner = write_winner(folder, space.settings(best.params), about)
    findings = Findings([*complete, *pruned], failed, list(space.varied), winner)
    write_file(folder / "search.html", _page(study, space, findings, command).encode("utf-8", "backslashreplace"))
    return findings


def text(findings: Findings) -> str:
    """The best trials for the terminal, and which failed."""
    rows, errors = findings.rows(), findings.errors()
    lines = [findings.summary(), "", *aligned([findings.header(), *rows[:_ROWS]])]
    if len(rows) > _ROWS:
        lines.append(f"and {len(rows) - _ROWS} more")
    return "\n".join([*lines, *(f"failed: {error}" for error in errors[:_ROWS])])


def _page(study: Study, space: Space, findings: Findings, command: str) -> str:
    best = findings.best[0]
    facts = {
        "command": command,
        "trials": findings.summary(),
        "best": f"trial {first_number(best)}, validation accuracy {best.value:.2%}",
        **{key: describe(distribution) for key, distribution in space.varied.items()},
        "winner": f"{train_command()} {findings.winner}" if findings.winner else "can't be written as a file",
    }
    shown = "".join(f"<tr><th>{html.escape(key)}</th><td>{_escaped(value)}</td></tr>" for key, value in facts.items())
    header = "".join(f"<th>{_escaped(name)}</th>" for name in findings.header())
    rows = "".join(
        f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>"
        for row in findings.rows()[:_ROWS_OF_THE_PAGE]
    )
    failed = "".join(f"<li>{_escaped(error)}</li>" for error in findings.errors()[:_ROWS_OF_THE_PAGE])
    failures = f"<section><h2>Failed trials</h2><ul>{failed}</ul></section>" if failed else ""
    sections = [
        (
            plot.is_wide,
            f"<section><h2>{plot.title}</h2><p><small>{plot.about}</small></p>"
            f"{document.image(plot.png, plot.title, 'drawn')}</section>",
        )
        for plot in plots_of(study)
    ]
    narrow = "".join(section for is_wide, section in sections if not is_wide)
    wide = "".join(section for is_wide, section in sections if is_wide)
    body = f"""\
<section><table class="facts">{shown}</table>
<p class="warning">All figures are of validation images. The best of many trials is partly luck: run its settings with
further seeds, and judge by those. Test images played no part in the search.</p></section>
<div class="pair">{narrow}</div>
{wide}
<section><h2>Trials</h2><div class="wide"><table><tr>{header}</tr>{rows}</table></div></section>
{failures}
"""
    return document.document("Search", body, "section img { max-width: 100%; }")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else one_line(value, 60)


def _escaped(value: str) -> str:
    return html.escape(one_line(value, 2000))
