"""Colors for classes that have none: bright ones, which are seen over photographs; VOC's are dark."""

from semiseg.types import voc_color

Color = tuple[int, int, int]

_BRIGHT = ((230, 25, 75), (60, 200, 75), (255, 225, 25), (0, 130, 230), (245, 130, 48), (160, 60, 220), (70, 240, 240),
           (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 170, 150), (170, 110, 40))  # fmt: skip


def colors(count: int, background: bool) -> tuple[Color, ...]:
    """Returns the colors of classes 0, 1 ...: black for the background, then bright ones, and VOC's beyond these.

    Example:
        >>> colors(3, background=True)
        ((0, 0, 0), (230, 25, 75), (60, 200, 75))
    """
    first = ((0, 0, 0),) if background else ()
    more = (*first, *_BRIGHT)
    return (*more, *(voc_color(index) for index in range(len(more), 255)))[:count]
