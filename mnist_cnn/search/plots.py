"""Optuna's own plots of a study, as PNG files for the report."""

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

_VALUE = "validation accuracy"


class Plot(NamedTuple):
    """`png` is the file's content; `wide` says that it needs the whole width of the page."""

    title: str
    about: str
    png: bytes
    wide: bool


def plots_of(study: Study) -> Iterator[Plot]:
    """The plots that the trials of a study are enough for."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    reported = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
    if complete:
        about = "Every complete trial, and the best so far."
        yield _plot("History", about, lambda: plots.plot_optimization_history(study, target_name=_VALUE))
    if any(trial.intermediate_values for trial in reported):
        about = "Each trial's validation accuracy by epoch; those that end early were pruned."
        yield _plot("Epochs", about, lambda: plots.plot_intermediate_values(study), legend=False)
    if len({trial.value for trial in complete}) > 1:  # or no setting can be more important than another
        about = "The share of the differences that each setting accounts for, as PED-ANOVA estimates it."
        yield _plot("Importance", about, lambda: plots.plot_param_importances(study, target_name=_VALUE), legend=False)
    if complete:
        names = len({name for trial in complete for name in trial.params})
        about = "Each complete trial by the value of each setting; later trials are darker."
        yield _plot("Settings", about, lambda: plots.plot_slice(study, target_name=_VALUE), inches=3.2 * names)
        about = "Each complete trial as a line through its values; the darker, the better."
        draw = lambda: plots.plot_parallel_coordinate(study, target_name=_VALUE)  # noqa: E731
        yield _plot("All settings together", about, draw, inches=8)


def _plot(title: str, about: str, draw: Callable[[], Any], legend: bool = True, inches: float = 5) -> Plot:
    stream = io.BytesIO()
    pyplot.switch_backend("agg")  # Optuna draws with pyplot, which would open windows
    # Optuna changes matplotlib's style for all that follows. Names of settings may have dollars in them.
    with pyplot.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # its plots are, since Optuna 2.2
        warnings.simplefilter("ignore", UserWarning)  # matplotlib, about a layout that is tight; the file is cut to fit
        figure = np.atleast_1d(draw())[0].figure
        figure.set_size_inches(max(5, inches), 3.6)
        for axes in figure.axes:
            axes.set_title("")  # the page has them
            if not legend and axes.get_legend():
                axes.get_legend().remove()
        figure.savefig(stream, format="png", dpi=160, bbox_inches="tight", facecolor="white")
        pyplot.close(figure)
    return Plot(title, about, stream.getvalue(), inches > 5)
