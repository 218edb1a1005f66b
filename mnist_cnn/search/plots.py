"""Optuna's own plots of a study, as PNG files for the report."""

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

_VALUE = "validation accuracy"
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

    def history() -> Any:
        axes = plots.plot_optimization_history(study, target_name=_VALUE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="lower right")
        return axes

    def epochs() -> Any:
        axes = plots.plot_intermediate_values(study)
        axes.set(xlabel="epoch", ylabel=_VALUE)
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
        return drawn

    def together() -> Any:
        axes = plots.plot_parallel_coordinate(study, target_name=_VALUE)
        next(bar for bar in axes.figure.axes if bar.get_label() == "<colorbar>").remove()  # it hides the last setting
        return axes

    yield _plot("History", "Every complete trial, and the best so far.", history)
    yield _plot("Epochs", "Each trial by epoch; those that end early were pruned.", epochs)
    if len({trial.value for trial in complete}) > 1:  # or no setting can be more important than another
        about = "The share of the differences that each setting accounts for, as PED-ANOVA estimates it."
        yield _plot("Importance", about, importances)
    about = "Each complete trial by the value of each setting; later ones are darker."
    yield _plot("Settings", about, settings, is_wide=True)
    about = "Each complete trial as a line through its values; the darker, the better."
    yield _plot("All settings together", about, together, is_wide=True)


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
