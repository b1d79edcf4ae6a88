"""The legend of a figure with several panels."""

from __future__ import annotations

from matplotlib.figure import Figure


def add(figure: Figure, fontsize: int = 7) -> None:
    """Adds a legend at the right, which has each label of any panel once.

    The labels of the last panel come first. A label has to look alike in all panels.
    """
    named = {
        label: handle
        for ax in reversed(figure.axes)
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize=fontsize)
