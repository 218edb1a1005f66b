"""Optuna's own plots of a study, as PNG files for the report."""

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

_VALUE = "validation accuracy"
_OUTSIDE = "Trials far below the others may lie outside."
_WIDE = 9  # inches; the other plots are five, as the figures of a run's report


class Plot(NamedTuple):
    """`png` is the content of a file; one that `is_wide` takes the whole width of the page."""

    title: str
    about: str
    png: bytes
    is_wide: bool


def plots_of(study: Study) -> Iterator[Plot]:
    """The plots that the trials of a study are enough for; at least one must be complete."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    values = [trial.value or 0.0 for trial in complete]
    by_epoch = [value for trial in study.get_trials(deepcopy=False) for value in trial.intermediate_values.values()]

    def history() -> Any:
        axes = plots.plot_optimization_history(study, target_name=_VALUE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="lower right")
        _zoom(axes, values)
        return axes

    def epochs() -> Any:
        axes = plots.plot_intermediate_values(study)
        axes.set(xlabel="epoch", ylabel=_VALUE)
        _zoom(axes, by_epoch)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend().remove()  # a line for each trial
        return axes

    def importances() -> Any:
        axes = plots.plot_param_importances(study, target_name=_VALUE)
        axes.legend().remove()
        return axes

    def settings() -> Any:
        drawn: Any = plots.plot_slice(study, target_name=_VALUE)  # one Axes, or an array of them
        for axes in np.atleast_1d(drawn):  # side by side, with room for a short name each
            name = textwrap.fill(axes.get_xlabel().replace(".", ". "), 16).replace(". ", ".")
            axes.set_xlabel(name, fontsize=8)
            axes.tick_params(labelsize=8)
            low, high = axes.get_xlim()
            if axes.get_xscale() == "log" and high > 10 * low:
                axes.xaxis.set_minor_formatter(NullFormatter())
        _zoom(axes, values)  # they share it
        return drawn

    def together() -> Any:
        axes = plots.plot_parallel_coordinate(study, target_name=_VALUE)
        next(bar for bar in axes.figure.axes if bar.get_label() == "<colorbar>").remove()  # it hides the last setting
        return axes

    yield _plot("History", f"Every complete trial, and the best so far. {_OUTSIDE}", history)
    yield _plot("Epochs", f"Each trial by epoch; those that end early were pruned. {_OUTSIDE}", epochs)
    if len({trial.value for trial in complete}) > 1:  # or no setting can be more important than another
        about = "The share of the differences that each setting accounts for, as PED-ANOVA estimates it."
        yield _plot("Importance", about, importances)
    about = f"Each complete trial by the value of each setting; the stronger its colour, the later it was. {_OUTSIDE}"
    yield _plot("Settings", about, settings, is_wide=True)
    about = "Each complete trial as a line through its values; the stronger its colour, the better."
    yield _plot("All settings together", about, together, is_wide=True)


def _zoom(axes: Axes, values: Sequence[float]) -> None:
    """Cut the axis below, so that one trial that has learned nothing doesn't press all others together."""
    middle, high = float(np.median(values or [0.0])), max(values, default=0.0)
    bottom = high - 4 * (high - middle)
    if min(values, default=0.0) < bottom < high:
        axes.set_ylim(bottom, high + 0.05 * (high - bottom))


def _plot(title: str, about: str, draw: Callable[[], Any], is_wide: bool = False) -> Plot:
    stream = io.BytesIO()
    pyplot.switch_backend("agg")  # Optuna draws with pyplot, which would open windows
    with pyplot.rc_context(), warnings.catch_warnings():  # Optuna changes matplotlib's style for all that follows
        warnings.simplefilter("ignore", ExperimentalWarning)  # its plots are, since Optuna 2.2
        warnings.simplefilter("ignore", UserWarning)  # matplotlib's, about a tight layout; the file is cut to fit
        figure = np.atleast_1d(draw())[0].figure
        figure.set_size_inches(_WIDE if is_wide else 5, 3.4)
        figure.suptitle("")  # the page has titles
        for axes in figure.axes:
            for place in ("left", "center"):
                axes.set_title("", loc=place)
            axes.set_facecolor("white")
            for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
                line.set_color("#e4e8ee")
        figure.savefig(stream, format="png", dpi=160, bbox_inches="tight", facecolor="white")
        pyplot.close(figure)
    return Plot(title, about, stream.getvalue(), is_wide)
