"""Knows the kinds of image files: their extensions, and what to install for a kind that cannot be read here."""

from PIL import features

try:  # an optional dependency
    import pillow_heif
except ImportError:
    _HEIF = False
else:
    pillow_heif.register_heif_opener()  # from now on Pillow reads HEIF
    _HEIF = True

_EXTENSIONS = {  # kinds of files by Pillow's names; it reads more kinds, but runs a program for EPS
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
_MISSING = {  # kinds that cannot be read here, and what to do about it
    kind: remedy
    for kind, readable, remedy in (
        ("JPEG2000", features.check("jpg_2000"), "install a Pillow that reads JPEG 2000"),
        ("AVIF", features.check("avif"), "install a Pillow that reads AVIF"),
        ("HEIF", _HEIF, 'pip install "semiseg[heic]"'),
    )
    if not readable
}
_STARTS = (  # what files of these kinds have in their first bytes
    ("JPEG2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("JPEG2000", b"\xff\x4f\xff\x51"),
    ("AVIF", b"avif"),
    *(("HEIF", brand) for brand in (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")),
)

READABLE = tuple(kind for kind in _EXTENSIONS if kind not in _MISSING)
SUFFIXES = frozenset(suffix for kind in READABLE for suffix in _EXTENSIONS[kind])
MISSING = {suffix: remedy for kind, remedy in _MISSING.items() for suffix in _EXTENSIONS[kind]}  # extension -> remedy


def missing_for(start: bytes) -> tuple[str, str] | None:
    """Returns the kind of a file that starts with these bytes, and what to install for it. None: nothing is missing.

    A file's extension may be wrong: phones and messengers rename HEIC to .jpg.
    """
    signature = start[:32]
    in_boxes = signature[4:8] == b"ftyp"
    for kind, mark in _STARTS:
        found = mark in signature if in_boxes else signature.startswith(mark)
        if found:
            return (kind, _MISSING[kind]) if kind in _MISSING else None
    return None
